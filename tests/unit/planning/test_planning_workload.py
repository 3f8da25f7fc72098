"""The random draw of a step's rollouts, and the rates that a run's folder gives."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import pytest

from aipo.planning.measured import METRICS, ROLLOUTS, TIMINGS, measured, spread_of
from aipo.planning.workload import Spread, Workload, draw_trajectories
from aipo.training import journal

MANY = Workload(prompts_per_step=200, rollouts_per_prompt=8)


def consultations(workload: Workload) -> list[list[str]]:
    drawn = draw_trajectories(workload)
    return [[turn.consultation.agent for turn in t.turns if turn.consultation] for t in drawn]


def test_means_are_those_that_were_asked_for() -> None:
    long = replace(
        MANY, response_tokens=Spread(1000, 0.7, 1e6), consultations={"verify": 1.2, "knowledge": 0.6}
    )
    drawn = draw_trajectories(long)
    asked = consultations(long)
    consulting = [names for i, names in enumerate(asked) if i % 8 < 4]
    assert not any(names for i, names in enumerate(asked) if i % 8 >= 4)
    counts = Counter(name for names in consulting for name in names)
    assert counts["verify"] / len(consulting) == pytest.approx(1.2, rel=0.08)
    assert counts["knowledge"] / len(consulting) == pytest.approx(0.6, rel=0.12)
    assert max(len(names) for names in consulting) == 3
    own = [t.policy_tokens - 60 * len(names) for t, names in zip(drawn, asked, strict=True)]
    assert fmean(own) == pytest.approx(1000, rel=0.06)
    assert median(own) == pytest.approx(1000 / 2.718281828 ** (0.49 / 2), rel=0.06)


def test_latencies_have_their_median_and_are_cut() -> None:
    waits = [
        turn.consultation.latency_s
        for t in draw_trajectories(replace(MANY, latency_s=Spread.around(2.0, 0.7, 5.0)))
        for turn in t.turns
        if turn.consultation
    ]
    assert median(waits) == pytest.approx(2.0, rel=0.1)
    assert max(waits) == 5.0


def test_no_rollout_is_longer_than_the_limits() -> None:
    tight = replace(MANY, response_tokens=Spread(900, 1.0, 1000), consultations={"verify": 3.0})
    drawn = draw_trajectories(tight)
    assert all(t.policy_tokens + t.feedback_tokens <= 1000 for t in drawn)
    assert all(t.length <= tight.longest for t in drawn)
    assert max(t.policy_tokens + t.feedback_tokens for t in drawn) == 1000


def test_a_rollout_does_not_depend_on_how_many_others_there_are() -> None:
    assert draw_trajectories(MANY)[:80] == draw_trajectories(replace(MANY, prompts_per_step=10))


@pytest.mark.parametrize("rates", [{"verify": 3.5}, {"verify": -0.1}])
def test_an_impossible_rate_is_refused(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"--consultations adds up to .* 0 to 3"):
        Workload(consultations=rates)


def write_run(folder: Path, *, rollouts: bool = True) -> Path:
    folder.mkdir()
    lines = [
        {
            "step": s,
            "consultations/verify": 0.5,
            "consultations/knowledge": 1.0 + s,
            "outcomes/answered": 10.0,
        }
        | {"outcomes/refused_limit": 7.0}
        for s in (1, 2)
    ]
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "cons')
    times = [{"step": 1, "consult_s": 5.0}, {"step": 2, "consult_s": 25.0}, {"step": 2, "evaluate_s": 9.0}]
    (folder / TIMINGS).write_text("".join(json.dumps(line) + "\n" for line in times))
    if rollouts:
        sizes = [("prompt", 6), ("policy", 20), ("feedback", 4), ("policy", 10)]
        segments = [{"source": s, "ids": list(range(n))} for s, n in sizes]
        solo = [{"source": s, "ids": list(range(n))} for s, n in (("prompt", 8), ("policy", 50))]
        records = [{"step": 1, "condition": "consulting", "segments": segments}] + [
            {"step": 1, "condition": "solo", "segments": solo} for _ in range(3)
        ]
        records.append({"step": 1, "condition": "solo", "segments": []})  # one that could not be made
        (folder / ROLLOUTS).write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_a_run_gives_rates_lengths_and_latency(tmp_path: Path) -> None:
    assumed = replace(MANY, max_consultations=1, consultations={})
    workload = measured(write_run(tmp_path / "run"), assumed)
    assert workload.consultations == {"knowledge": 2.5, "verify": 0.5}
    assert workload.latency_s.mean == 30.0 / 20.0
    assert workload.max_consultations == 3
    assert (workload.prompts_per_step, workload.rollouts_per_prompt) == (200, 8)
    assert workload.solo_fraction == 0.75
    assert workload.prompt_tokens.mean == 7.5
    assert workload.response_tokens.mean == 45.0 and workload.response_tokens.most == 54.0
    assert workload.feedback_tokens == Spread(4, 0.0, 4)
    assert (workload.request_tokens, workload.latency_s.mean) == (0.0, 1.5)


def test_without_recorded_rollouts_lengths_stay_assumed(tmp_path: Path) -> None:
    workload = measured(write_run(tmp_path / "run", rollouts=False), MANY)
    assert workload.response_tokens == MANY.response_tokens
    assert workload.consultations == {"knowledge": 2.5, "verify": 0.5}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--like .*no metrics.jsonl"):
        measured(tmp_path, MANY)


def test_files_are_named_as_the_journal_names_them() -> None:
    assert (METRICS, TIMINGS, ROLLOUTS) == (journal.METRICS, journal.TIMINGS, journal.ROLLOUTS)


def test_a_spread_that_was_fitted_is_the_one_that_was_drawn_from() -> None:
    drawn = [t.policy_tokens for t in draw_trajectories(replace(MANY, consultations={}))]
    fitted = spread_of(drawn)
    assert fitted.mean == fmean(drawn)
    assert fitted.sigma == pytest.approx(0.7, rel=0.05)
