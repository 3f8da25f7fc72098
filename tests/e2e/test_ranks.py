"""Two CPU ranks that torchrun starts train as one process does, and none waits for ever for another.

Proves, under DDP and FSDP: the series of losses, gradient norms and rewards of one process, and its gradient
to 1e-9 however rows fall on ranks; in mixed precision its curve of losses, within a fiftieth; a killed run
goes on to the same bytes, and with one process too; a rank's bad number or signal is every rank's; a rank
that dies or is silent ends the run with an error; a rank that has done all ends well, whatever gloo's threads
still hold.
"""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from aipo.training.update import Updater, UpdateSettings
from support.policies import counting_policy
from support.ranks import (
    Train,
    assert_same_policy,
    assert_same_series,
    metrics,
    started,
    torchrun,
    training_in,
    workers_after_a_step,
)
from support.updates import (
    LONGEST,
    OBJECTIVE,
    UNEVEN_ROWS,
    descent,
    double_model,
    gradient_of,
    loss_curve,
    mixed_model,
)

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
UPDATES = Path(__file__).with_name("updates_on_ranks.py")
LAST_EXCHANGE = Path(__file__).with_name("last_exchange_of_ranks.py")
SILENT_S = 20
GIVEN_UP_S = 60
"""torchrun gives the processes that are left 30 s to end, and a stopped one needs all of them."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_policy(tmp_path_factory)


@pytest.fixture
def train(policy: Path, tmp_path: Path) -> Train:
    return training_in(tmp_path, policy)


def update_on_two_ranks(
    folder: Path, kind: str, microbatch_tokens: int, fault: str, *more: str
) -> dict[str, Any]:
    log = folder / "log"
    process = torchrun(log, 2, UPDATES, folder / "found.pt", kind, str(microbatch_tokens), fault, *more)
    assert process.wait(timeout=200) == 0, log.read_text()
    found: dict[str, Any] = torch.load(folder / "found.pt")
    return found


def update_of_one(microbatch_tokens: int) -> tuple[list[torch.Tensor], Updater, dict[str, float]]:
    """The same in this process; the gradient is that of the objective on the whole mini-batch at once."""
    model = double_model()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    updater = Updater(
        Accelerator(cpu=True),
        model,
        optimiser,
        UpdateSettings(temperature=1.0, microbatch_tokens=microbatch_tokens, max_grad_norm=1e6, pad_id=0),
    )
    found = updater.apply([UNEVEN_ROWS], OBJECTIVE, by_source=True, keep_feedback=True)
    return gradient_of(UNEVEN_ROWS), updater, found


@pytest.mark.parametrize("ranks", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_process_does(train: Train, ranks: str) -> None:
    by_source = "train.source_gradients_every_steps=2"
    one = train("one", by_source)
    two = train("two", by_source, f"run.ranks={ranks}", ranks=2)
    assert_same_series(one, two)
    assert_same_policy(one, two)
    records = [(run / "rollouts.jsonl").read_text().count("\n") for run in (one, two)]
    assert records == [3 * 4 * 4] * 2


@pytest.mark.parametrize("ranks", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "how", [["algorithm.kl_estimator=exact"], ["policy.lora_rank=2"]], ids=["frozen copy", "adapters"]
)
def test_two_ranks_are_held_to_the_start_as_one_process_is(train: Train, how: list[str], ranks: str) -> None:
    held = ["algorithm.kl_weight=0.5", "algorithm.entropy_weight=0.01", "train.logit_chunk_tokens=50", *how]
    one = train("one", *held)
    two = train("two", *held, f"run.ranks={ranks}", ranks=2)
    assert_same_series(one, two)
    assert_same_policy(one, two)
    assert metrics(two)[-1]["kl_reference"] > 1e-6


@pytest.mark.parametrize("ranks", ["ddp", "fsdp"])
def test_a_killed_run_of_two_ranks_goes_on_to_the_same_bytes_and_with_one_process_as_well(
    train: Train, policy: Path, tmp_path: Path, ranks: str
) -> None:
    how = [f"run.ranks={ranks}", "evaluate.at_steps=[2]", "evaluate.problems=1", "evaluate.pass_at=[1]"]
    whole = train("whole", *how, ranks=2)
    run = tmp_path / "run"
    with started(tmp_path, policy, *how) as process:
        for worker in workers_after_a_step(process, run):
            worker.kill()
        assert process.wait(timeout=GIVEN_UP_S) != 0
    assert not (run / "policy").exists()
    run.rename(tmp_path / "kept")
    for number in (2, 1):
        shutil.copytree(tmp_path / "kept", run)
        train("run", *how, ranks=number)
        if number == 2:
            for name in ("metrics.jsonl", "rollouts.jsonl", "policy/model.safetensors"):
                assert (run / name).read_bytes() == (whole / name).read_bytes(), name
            shutil.rmtree(run)
    assert_same_series(whole, run)
    assert_same_policy(whole, run)
    assert (run / "evaluation.jsonl").read_text().count("\n") == 2, "each mode once: rank 0 alone evaluates"


def test_a_signal_ends_all_ranks_after_the_same_step(train: Train, policy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(tmp_path, policy, "train.steps=2000") as process:
        workers = workers_after_a_step(process, run)
        workers[1].send_signal(signal.SIGTERM)  # to one of them: the other one is told
        assert process.wait(timeout=GIVEN_UP_S) != 0
    done = len(metrics(run))
    assert (run / "stopped.txt").read_text().startswith(f"signal 15 after step {done};")
    assert (run / "checkpoints" / f"step-{done:06d}" / "manifest.json").exists()


def test_a_thread_of_gloo_that_still_holds_an_exchange_aborts_no_rank_at_its_end(tmp_path: Path) -> None:
    process = torchrun(tmp_path / "log", 2, LAST_EXCHANGE)
    assert process.wait(timeout=100) == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("all done") == 2


def test_no_rank_of_a_run_ends_by_pythons_finalisation(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        "class Last:\n"
        "    def __del__(self, write=os.write):\n"
        "        write(2, b'torn down')\n"
        "if 'RANK' in os.environ:\n"
        "    sys.last = Last()\n"
        "    atexit.register(print, 'registered for the end')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    train("run", "train.steps=1", ranks=2)
    told = (tmp_path / "run.log").read_text()
    assert told.count("registered for the end") == 2
    assert "torn down" not in told


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP], ids=["gone", "silent"])
def test_a_rank_that_is_gone_or_silent_ends_the_run_with_an_error(
    policy: Path, tmp_path: Path, what: signal.Signals
) -> None:
    run = tmp_path / "run"
    with started(tmp_path, policy, "train.steps=2000", f"run.rank_timeout_s={SILENT_S}") as process:
        workers_after_a_step(process, run)[1].send_signal(what)
        assert process.wait(timeout=SILENT_S + GIVEN_UP_S) != 0
    if what is signal.SIGSTOP:
        told = (run / "stopped.txt").read_text()
        assert told.startswith(
            "rank 0: another rank has ended, or was silent for more than run.rank_timeout_s"
        )
    assert list((run / "checkpoints").glob("step-*/manifest.json"))


@pytest.mark.parametrize("microbatch_tokens", [8 * LONGEST, 18, 1], ids=["few", "uneven", "single rows"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_the_gradient_of_two_ranks_is_that_of_the_whole_mini_batch(
    tmp_path: Path, kind: str, microbatch_tokens: int
) -> None:
    two = update_on_two_ranks(tmp_path, kind, microbatch_tokens, "")
    expected, updater, metrics_of_one = update_of_one(microbatch_tokens)
    assert two["split"] is (kind == "fsdp")
    for ours, change in zip(two["changes"], expected, strict=True):
        torch.testing.assert_close(ours, change, rtol=0, atol=1e-9)
    assert two["metrics"] == pytest.approx(metrics_of_one, rel=1e-6, abs=1e-9)
    assert {"grad_norm_policy", "grad_norm_feedback"} < two["metrics"].keys()
    kept = [updater.feedback_log_p[id(row.stream)] for row in UNEVEN_ROWS]
    assert torch.tensor(two["feedback"]).allclose(torch.tensor(kept), rtol=0, atol=1e-9)


def losses_of_one(model: PreTrainedModel) -> list[float]:
    optimiser = descent(model)
    settings = UpdateSettings(temperature=1.0, microbatch_tokens=18, max_grad_norm=1e6, pad_id=0)
    return loss_curve(Updater(Accelerator(cpu=True), model, optimiser, settings))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_in_mixed_precision_learn_as_one_process_does(tmp_path: Path, kind: str) -> None:
    found = update_on_two_ranks(tmp_path, kind, 18, "", "mixed")
    one, full = losses_of_one(mixed_model()), losses_of_one(double_model().float())
    # Before the first step the ranks' loss is one process's, which float32 is not: they compute in bfloat16.
    assert found["losses"][0] == pytest.approx(one[0], abs=1e-6)
    assert abs(one[0] - full[0]) > 1e-5
    # Later, each micro-batch's gradient has been rounded, and ranks cut others: a fiftieth of what is learnt.
    apart = max(abs(a - b) for a, b in zip(one, found["losses"], strict=True))
    assert apart < 0.02 * (one[0] - one[-1])
    assert one[-1] < one[0] - 0.05
    assert found["kept"] == {torch.float32}  # weights and momentum


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_what_is_not_a_number_on_one_rank_is_refused_by_all(tmp_path: Path, kind: str) -> None:
    two = update_on_two_ranks(tmp_path, kind, 18, "nan")
    assert len(two["errors"]) == 2
    assert all("NonFiniteError" in error and "log-probabilities" in error for error in two["errors"])
    assert all(not change.any() for change in two["changes"])
