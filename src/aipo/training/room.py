"""What is done where memory runs out in an update: the same work in smaller micro-batches.

Nothing is lost and no gradient changes, because what was under way is forgotten and computed again, and a
token's weight does not depend on how its mini-batch is cut. Adding up in another order rounds differently.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from aipo.training.events import StopRunError

Result = TypeVar("Result")
RECORDED = "microbatch_tokens"
"""The metric of a step after which, or in which, memory ran out."""


class Room:
    """How many tokens a forward pass may have; fewer from the first time that memory ran out."""

    def __init__(self, microbatch_tokens: int, several_ranks: bool) -> None:
        self.tokens = self._asked = self._said = microbatch_tokens
        self._several = several_ranks
        self._pass_rows = self._pass_tokens = 0

    def metrics(self) -> dict[str, float]:
        """Return what a step's record says: nothing, unless memory has run out in this run."""
        return {RECORDED: float(self.tokens)} if self.tokens < self._asked else {}

    def warnings(self) -> list[str]:
        """Return what the user should know since this was asked last."""
        said, self._said = self._said, self.tokens
        if self.tokens == said:
            return []
        return [
            "memory ran out in the update; what was under way was done again, and the run goes on with at "
            f"most {self.tokens} tokens in a pass (train.microbatch_tokens = {self._asked})"
        ]

    def replay(self, metrics: Sequence[Mapping[str, float]]) -> None:
        """Go on as a run does whose steps so far are recorded: with its last bits, passes are its own."""
        self.tokens = self._said = int(min([self._asked, *(m[RECORDED] for m in metrics if RECORDED in m)]))

    def note_pass(self, rows: int, tokens: int) -> None:
        """Note the size of the pass that begins: its rows, and its tokens with padding."""
        self._pass_rows, self._pass_tokens = rows, tokens

    def within(self, compute: Callable[[], Result], forget: Callable[[], object]) -> Result:
        """Return what `compute` returns; where memory runs out, `forget` what it has done and try with half.

        Raises `StopRunError` where a single row does not fit. Simplification: that of several ranks whose
        memory runs out ends the run, because the others wait for it in the pass that it did not finish.
        """
        while True:
            try:
                return compute()
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                self._halve(str(error))
            forget()  # not in the handler, whose traceback holds on to what filled the memory
            clear_device_cache(garbage_collection=True)

    def _halve(self, why: str) -> None:
        if self._several or self._pass_rows < 2:
            what = "on one of several ranks" if self._several else "with a single row"
            raise StopRunError(
                f"memory ran out in a forward or backward pass of {self._pass_tokens} tokens {what} "
                f"({why.splitlines()[0]}); lower train.microbatch_tokens = {self._asked} or "
                "rollout.max_response_tokens, set train.gradient_checkpointing = true, or train adapters "
                "(policy.lora_rank). The same command continues from the newest checkpoint"
            )
        self.tokens = max(1, min(self.tokens, self._pass_tokens) // 2)
