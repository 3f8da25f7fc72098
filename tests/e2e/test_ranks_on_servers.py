"""Two ranks that sample from policy servers train as one process does, and trust no completion more than it.

Against twins of a vLLM server over real HTTP, under DDP and FSDP, with one server and two: the series and
the records of one process; a killed run goes on; a server that begins anew in the middle of a step is seen by
the rank that samples from it; a server that takes no weights is done without, and said.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.policies import counting_policy, counting_recipe, run_cli
from support.ranks import (
    SMALL,
    Train,
    assert_same_policy,
    assert_same_series,
    metrics,
    started,
    training_in,
    workers_after_a_step,
)
from support.vllm_twin import Fault, Twin

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_policy(tmp_path_factory)


@pytest.fixture
def twins(policy: Path) -> Iterator[Sequence[Twin]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Twin(policy)) for _ in range(2)]


def on(twins: Sequence[Twin]) -> list[str]:
    urls = [twin.url for twin in twins]
    return ["engine.name=vllm", f"engine.urls={json.dumps(urls)}", "engine.weights_timeout_s=60"]


@pytest.fixture
def train(policy: Path, tmp_path: Path) -> Train:
    return training_in(tmp_path, policy)


def rollouts(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]


def assert_same_rollouts(one: Path, several: Path) -> None:
    for expected, found in zip(rollouts(one), rollouts(several), strict=True):
        for name in ("step", "rollout", "verdict", "weights_version"):
            assert found[name] == expected[name]
        for ours, theirs in zip(found["segments"], expected["segments"], strict=True):
            assert ours["ids"] == theirs["ids"]
            if theirs.get("log_probs"):
                # Sums of gradients in another order make other weights, in the last digits, for later steps.
                most = 1e-5 if found["step"] == 1 else 5e-5
                assert ours["log_probs"] == pytest.approx(theirs["log_probs"], abs=most)


@pytest.mark.parametrize("ranks", ["ddp", "fsdp"])
@pytest.mark.parametrize("servers", [1, 2])
def test_two_ranks_on_servers_learn_what_one_process_does(
    train: Train, twins: Sequence[Twin], ranks: str, servers: int
) -> None:
    one = train("one", *on(twins[:1]))
    for twin in twins:
        twin.requests.clear()
    two = train("two", *on(twins[:servers]), f"run.ranks={ranks}", ranks=2)
    assert_same_series(one, two)
    assert_same_policy(one, two)
    assert_same_rollouts(one, two)
    assert {(r["step"], r["weights_version"]) for r in rollouts(two)} == {(1, 0), (2, 1), (3, 2)}
    assert all(row["mismatch_max"] < 1e-4 and row["ungraded_share"] == 0 for row in metrics(two))
    for twin in twins[:servers]:
        loaded = [body["new_version"] for path, body in twin.requests if path == "/update_weight_version"]
        versions = [int(name.rpartition("-")[2]) for name in loaded if not name.endswith("loading")]
        assert versions == [0, 0, 1, 2, 3], "one rank alone loads: for the self-test, the run and after steps"
    if servers == 2:
        each = [len(twin.completions()) for twin in twins]
        assert min(each) > 0.3 * sum(each), each


def test_a_killed_run_of_two_ranks_on_two_servers_goes_on_with_the_same_records(
    train: Train, twins: Sequence[Twin], policy: Path, tmp_path: Path
) -> None:
    how = [*on(twins), "run.ranks=fsdp"]
    whole = train("whole", *how, ranks=2)
    run = tmp_path / "run"
    with started(tmp_path, policy, *how) as process:
        for worker in workers_after_a_step(process, run):
            worker.kill()
        assert process.wait(timeout=60) != 0
    assert not (run / "policy").exists()
    train("run", *how, ranks=2)
    assert_same_series(whole, run)
    assert_same_rollouts(whole, run)


def test_a_server_that_began_anew_is_seen_by_the_rank_that_samples_from_it(
    twins: Sequence[Twin], policy: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def restarts_once(body: dict[str, Any]) -> Fault | None:
        recorded = run / "metrics.jsonl"
        done = recorded.exists() and recorded.stat().st_size > 0
        return Fault.RESTARTED if done and twins[1].version != "default" else None

    twins[1].fault = restarts_once
    with started(tmp_path, policy, *on(twins), "run.ranks=ddp") as process:
        assert process.wait(timeout=200) != 0
    told = " ".join((tmp_path / "run.log").read_text().split())
    assert "of the rollouts could not be graded" in told
    assert "it was started anew, or another run gave it weights" in told
    stamped = [r for r in rollouts(run) if r["step"] > 1]
    assert not stamped, "the step of the restart is not recorded"


def test_what_a_dead_server_had_is_ungraded_and_counted_and_the_others_go_on(
    twins: Sequence[Twin], policy: Path, tmp_path: Path
) -> None:
    """With a large share of UNGRADED rollouts allowed; by default the run stops."""
    run = tmp_path / "run"

    def dies(body: dict[str, Any]) -> Fault | None:
        recorded = run / "metrics.jsonl"
        twins[1].refuse_weights = recorded.exists() and recorded.stat().st_size > 0
        return Fault.CLOSE if twins[1].refuse_weights else None

    twins[1].fault = dies
    recipe = counting_recipe(tmp_path)
    own = [f"policy.model={policy}", f"run.output={run}", *SMALL, *on(twins)]
    result = run_cli("train", recipe, *own, "train.max_ungraded_share=0.9")
    assert result.exit_code == 0, result.output
    assert "took no weights and is not sampled from" in " ".join(result.output.split())
    shares = [row["ungraded_share"] for row in metrics(run)]
    assert shares[0] == 0 and 0 < shares[1] < 1 and shares[2] == 0, shares
    lost = [r for r in rollouts(run) if r["verdict"] == "ungraded"]
    assert len(lost) == round(shares[1] * sum(r["step"] == 2 for r in rollouts(run)))
    assert {r["step"] for r in lost} == {2}


def test_a_server_that_takes_no_weights_at_the_start_is_an_error_on_every_rank(
    twins: Sequence[Twin], policy: Path, tmp_path: Path
) -> None:
    twins[1].refuse_weights = True
    with started(tmp_path, policy, *on(twins)) as process:
        assert process.wait(timeout=200) != 0
    told = " ".join((tmp_path / "run.log").read_text().split())
    assert told.count("took no weights and is not sampled from") == 2, told
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
