"""verl's servers as an engine: `engines.base.Engine` over `LLMServerClient.generate`.

Ids in, ids out; an answer without each id's log-probability is an `EngineError`.

Simplification: verl's requests carry no seed, so that rollouts are not reproducible on verl.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import uuid4

from aipo.core.types import StopReason
from aipo.engines.base import Completion, EngineError, GenerationRequest, Sampling

BAN_BIAS = -100.0
"""The lowest bias that vLLM keeps: e^-100 of its probability is left to a banned token."""


class ServerClient(Protocol):
    """What is used of verl's `LLMServerClient`."""

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]
    ) -> Any:
        """Return an object with `token_ids`, `log_probs`, `stop_reason` and `extra_fields`."""
        ...


class VerlEngine:
    """An engine for one rollout: verl's client sends all requests of one id to one server and its cache.

    `failures` are the errors of verl's client that lose a rollout and not the run: Ray's, for one.
    """

    def __init__(
        self,
        client: ServerClient,
        decode: Callable[[Sequence[int]], str],
        end_ids: frozenset[int],
        timeout_s: float,
        failures: tuple[type[Exception], ...] = (ValueError,),
    ) -> None:
        self._client, self._decode, self._end_ids = client, decode, end_ids
        self._timeout_s, self._failures = timeout_s, failures
        self._request_id = uuid4().hex
        self.generate_s = 0.0
        self.versions: list[int] = []
        """Oldest and newest weights behind each answer."""

    async def generate(self, request: GenerationRequest) -> Completion:
        """Sample a continuation; see `Engine`."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._client.generate(
                    self._request_id,
                    prompt_ids=list(request.prefix_ids),
                    sampling_params=_parameters(request, self._end_ids),
                )
        except TimeoutError:
            raise EngineError(
                f"verl's server gave no answer within aipo.generate_timeout_s = {self._timeout_s}"
            ) from None
        except self._failures as error:
            raise EngineError(f"verl's server: {error!r}") from error
        finally:
            self.generate_s += time.monotonic() - begun
        return self._read(answer, request)

    async def release(self, session: str) -> None:
        """Do nothing: the server's cache forgets by itself."""

    def _read(self, answer: Any, request: GenerationRequest) -> Completion:
        ids = tuple(int(i) for i in answer.token_ids or ())
        if answer.stop_reason == "aborted" or not ids:
            raise EngineError(f"verl's server aborted the request after {len(ids)} tokens")
        log_probs = tuple(float(log_p) for log_p in answer.log_probs or ())
        if len(log_probs) != len(ids):
            raise EngineError(
                f"verl's server gave {len(ids)} ids and {len(log_probs)} log-probabilities; set "
                "actor_rollout_ref.rollout.calculate_log_probs = true"
            )
        extra = answer.extra_fields or {}
        steps = [extra.get(name) for name in ("min_global_steps", "max_global_steps", "global_steps")]
        known = [int(step) for step in steps if step is not None]
        self.versions += known
        return Completion(
            ids=ids,
            log_probs=log_probs,
            stop=self._stop(ids, request),
            weights_version=min(known, default=None),
        )

    def _stop(self, ids: tuple[int, ...], request: GenerationRequest) -> StopReason:
        """Say why it ended, which verl does not: its `completed` covers all three."""
        if ids[-1] in self._end_ids:
            return StopReason.END
        if request.stop and any(string in self._decode(ids) for string in request.stop):
            return StopReason.STOP_STRING
        if len(ids) >= request.max_new_tokens:
            return StopReason.LENGTH
        raise EngineError(
            f"verl's server ended with id {ids[-1]} after {len(ids)} of {request.max_new_tokens} tokens: no "
            "end id, no stop string; raise actor_rollout_ref.rollout.max_model_len if it is too low"
        )


def _parameters(request: GenerationRequest, end_ids: frozenset[int]) -> dict[str, Any]:
    sampling: Sampling = request.sampling
    parameters: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "repetition_penalty": 1.0,
        "logprobs": True,
        "max_tokens": request.max_new_tokens,
        "stop_token_ids": sorted(end_ids),
        "ignore_eos": True,  # ours are named above; the server's may be others
    }
    if request.stop:
        # A tag that is a special token is left out of the text in which vLLM looks for stop strings, unless:
        parameters |= {"stop": list(request.stop), "include_stop_str_in_output": True}
        parameters |= {"skip_special_tokens": False, "spaces_between_special_tokens": False}
    if longer := [sequence for sequence in request.banned_sequences if len(sequence) > 1]:
        raise EngineError(
            f"ids {list(longer[0])} cannot be banned on verl's servers, which ban single tokens here; make "
            "the request tags special tokens of the tokenizer, or set rollout.banned_fraction = 0"
        )
    if request.banned_sequences:
        parameters["logit_bias"] = {sequence[0]: BAN_BIAS for sequence in request.banned_sequences}
    return parameters
