"""TRL's side of step.py: its GRPOTrainer; runs in an environment with TRL, a turn for each step.

The same policy, prompts, lengths, sampling, learning rate and loss, one optimiser step for each batch, no KL.
Gradient checkpointing and bf16, which TRL switches on by default, are off as on our side (the first would
cost it a third more here); it logs every tenth step, as by default, and saves nothing.
"""

from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]  # this file runs where it is

from step_work import LEARNING_RATE, Turns, Work

EVER = 1_000_000


class InTurn(TrainerCallback):
    """Waits before each step."""

    def __init__(self, turns: Turns, groups: int) -> None:
        self._turns, self._groups, self.tokens = turns, groups, 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """End the step before and wait for this one."""
        self._turns.wait({"tokens": self.tokens, "teaching": self._groups})


def main() -> None:
    """Make steps."""
    work, turns = Work.given(), Turns()
    callback = InTurn(turns, work.prompts)

    def verdict(completion_ids: list[list[int]], **_: Any) -> list[float]:
        """Return a verdict that differs within each group."""
        callback.tokens = sum(map(len, completion_ids))
        return [float(i % 2) for i in range(len(completion_ids))]

    config = GRPOConfig(
        output_dir=work.folder + "/trl",
        max_steps=EVER,
        per_device_train_batch_size=work.peer_batch or work.sequences,
        gradient_accumulation_steps=work.sequences // (work.peer_batch or work.sequences),
        num_generations=work.rollouts,
        max_completion_length=work.new_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    rows = [{"prompt": chat} for chat in work.chats()]
    trainer = GRPOTrainer(
        model=work.folder + "/policy",
        args=config,
        train_dataset=Dataset.from_list(rows),
        reward_funcs=verdict,
        callbacks=[callback],
    )
    trainer.train()


if __name__ == "__main__":
    main()
