"""verl's trainer of ours without workers: rounds of a step, the loss of a step, what goes to the update."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl", reason="verl is not installed: scripts/verl.sh makes its environment")
pytest.importorskip(
    "transfer_queue", reason="verl's transfer queue is not installed: scripts/verl.sh makes its environment"
)
pytestmark = pytest.mark.verl

from transfer_queue import KVBatchMeta  # noqa: E402

from aipo.integrations.verl import trainer as module  # noqa: E402
from aipo.integrations.verl.credit import Drawn  # noqa: E402
from support.tokenizers import word_level  # noqa: E402
from support.verl import verls_configuration  # noqa: E402
from support.verl_batches import LOST, batch_of  # noqa: E402


class Workers:
    """Stands for verl's worker group."""

    def __init__(self) -> None:
        self.losses: list[Any] = []
        self.batches: list[Any] = []
        self._dispatch_info: dict[str, list[int]] = {"actor": [0, 1]}

    def set_loss_fn(self, loss: Any) -> None:
        self.losses.append(loss)

    def update_actor(self, batch: Any) -> dict[str, Any]:
        self.batches.append(batch)
        sums = {"aipo_sum/policy_tokens": [3.0, 5.0], "aipo_sum/ratio": [3.0, 5.0]}
        return {"metrics": {"mfu": [0.1], "pg_loss": [1.0, 3.0]} | {f"actor/{n}": v for n, v in sums.items()}}


def trainer_of(tmp_path: Path, *changes: str) -> Any:
    word_level().save_pretrained(tmp_path / "policy")
    trainer = module.AipoTrainerSync(verls_configuration(tmp_path, tmp_path / "policy", *changes))
    trainer.actor_rollout_wg, trainer.tokenizer, trainer.global_steps = Workers(), word_level(), 1
    return trainer


def meta(name: str) -> KVBatchMeta:
    return KVBatchMeta(keys=[f"{name}_0_0"], tags=[{}], partition_id="train")


def test_a_round_that_teaches_too_little_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, "train.dynamic_sampling_rounds=2")
    rounds = iter([batch_of(0, verdicts=(LOST,)).groups, batch_of(1).groups])
    monkeypatch.setattr(module, "read_groups", lambda batch: Drawn(groups=next(rounds), keys={}))
    asked: list[str] = []
    monkeypatch.setattr(trainer, "_add_batch_to_generate", lambda: asked.append("more"))
    names = iter("ab")
    batch, metrics = trainer._draw(
        lambda **_: (meta(next(names)), {"counted": 1}),
        global_steps=1,
        partition_id="train",
        batch_size=2,
    )
    assert batch.keys == ["a_0_0", "b_0_0"] and asked == ["more"] and metrics == {"counted": 2}
    assert len(trainer._step.groups) == 8


def test_the_update_gets_the_minibatches_that_were_laid_out_and_the_steps_loss(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "algorithm.floor_end=1.0", "train.steps=2", "algorithm.entropy_weight=0.1")
    trainer._layout = SimpleNamespace(rows_of_minibatch=2)
    keys = [f"{i}_0_0" for i in range(4)]
    for step in (1, 1, 2):
        trainer.global_steps = step
        metrics: dict[str, Any] = {}
        batch = KVBatchMeta(keys=keys, tags=[{} for _ in keys], partition_id="train")
        trainer._update_actor(batch, metrics)
    workers = trainer.actor_rollout_wg
    floors = [loss.objective.coefficient.floor for loss in workers.losses]
    assert floors == [0.1, 1.0]  # set anew where the schedule changes it
    said = workers.batches[0].extra_info
    assert said["mini_batch_size"] == 2 and said["calculate_entropy"] is True
    assert metrics["actor/pg_loss"] == 2.0
    assert metrics["aipo/policy_tokens"] == 8.0 and metrics["aipo/ratio_mean"] == 1.0


def test_the_number_of_ranks_is_verls(tmp_path: Path) -> None:
    assert trainer_of(tmp_path)._ranks() == 2
