"""Where memory runs out the same gradient comes of smaller micro-batches, and the run says so once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import aipo
from aipo.config.loader import load_settings
from aipo.config.settings import Settings, TrainSettings
from aipo.training import update
from aipo.training.device import settled
from aipo.training.events import Reporter, StopRunError
from aipo.training.log_probs import token_log_probs
from aipo.training.model import CHECKPOINTED_PARAMETERS, checkpoints_activations
from aipo.training.update import Updater, UpdateSettings
from support.policies import counting_policy, counting_recipe
from support.updates import LONGEST, OBJECTIVE, UNEVEN_ROWS, double_model, gradient_of


def fits(tokens: int, backward: bool = False) -> Any:
    """A forward pass that a GPU would refuse beyond some padded tokens, at once or in its backward pass."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")

    def forward(model: torch.nn.Module, ids: torch.Tensor, *more: Any) -> tuple[torch.Tensor, ...]:
        if ids.numel() > tokens and not backward:
            full()
        log_p, *rest = token_log_probs(model, ids, *more)
        if ids.numel() > tokens and log_p.requires_grad:
            first = next(model.parameters())  # the last that a backward pass reaches: most of it is done then
            hook = first.register_post_accumulate_grad_hook(full)
            log_p.register_hook(lambda _: None)
            forward.hooks.append(hook)  # type: ignore[attr-defined]
        return (log_p, *rest)

    forward.hooks = []  # type: ignore[attr-defined]
    return forward


@pytest.mark.parametrize("backward", [False, True], ids=["in the forward pass", "in the backward pass"])
def test_the_gradient_is_that_of_enough_memory(backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = double_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    settings = UpdateSettings(temperature=1.0, microbatch_tokens=1000, max_grad_norm=1e6, pad_id=0)
    updater = Updater(Accelerator(cpu=True), model, torch.optim.SGD(model.parameters(), lr=1.0), settings)
    limited = fits(3 * LONGEST, backward)

    def once_full(*arguments: Any) -> tuple[torch.Tensor, ...]:
        for hook in limited.hooks:
            hook.remove()
        limited.hooks.clear()
        found: tuple[torch.Tensor, ...] = limited(*arguments)
        return found

    monkeypatch.setattr(update, "token_log_probs", once_full)
    updater.apply([UNEVEN_ROWS], OBJECTIVE)
    assert updater.room.tokens <= 3 * LONGEST and updater.room.warnings() and not updater.room.warnings()
    changes = [a - b.detach() for a, b in zip(before, model.parameters(), strict=True)]
    for change, expected in zip(changes, gradient_of(UNEVEN_ROWS), strict=True):
        torch.testing.assert_close(change, expected, atol=1e-9, rtol=1e-9)


def test_a_row_that_does_not_fit_by_itself_ends_the_run_with_the_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = double_model()
    settings = UpdateSettings(temperature=1.0, microbatch_tokens=1000, max_grad_norm=1e6, pad_id=0)
    updater = Updater(Accelerator(cpu=True), model, torch.optim.SGD(model.parameters(), lr=1.0), settings)
    monkeypatch.setattr(update, "token_log_probs", fits(0))
    with pytest.raises(StopRunError, match="with a single row .*lower train.microbatch_tokens = 1000"):
        updater.apply([UNEVEN_ROWS], OBJECTIVE)


def test_a_run_records_it_says_it_once_and_resumes_with_what_was_left(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = tmp_path / "run", []

    class Listener(Reporter):
        def warn(self, line: str) -> None:
            said.append(line)

    policy = {"model": str(counting_policy(tmp_path_factory))}
    recipe = counting_recipe(tmp_path, run={"output": str(run)}, policy=policy, train={"steps": 2})
    monkeypatch.setattr(update, "token_log_probs", fits(200))
    aipo.train(load_settings(recipe), reporter=Listener())
    assert len([line for line in said if "memory ran out" in line]) == 1
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    left = metrics[-1]["microbatch_tokens"]
    assert left <= 200
    monkeypatch.setattr(update, "token_log_probs", token_log_probs)
    aipo.train(load_settings(recipe, ["train.steps=3"]), may_change=["train.steps"], reporter=Listener())
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[2]["microbatch_tokens"] == left
    assert len([line for line in said if "memory ran out" in line]) == 1


def test_activations_are_computed_again_from_a_size_on_unless_the_setting_or_the_run_says_otherwise() -> None:
    model = double_model()
    small, large = TrainSettings(), TrainSettings(gradient_checkpointing=True)
    assert not checkpoints_activations(small, model) and checkpoints_activations(large, model)
    with torch.device("meta"):
        model.big = torch.nn.Parameter(torch.empty(CHECKPOINTED_PARAMETERS))
    assert checkpoints_activations(small, model)
    assert not checkpoints_activations(TrainSettings(gradient_checkpointing=False), model)
    begun = load_settings(None, ["train.gradient_checkpointing=false"])
    assert settled(Settings(), begun).train.gradient_checkpointing is False
