"""The report of a comparison shows every stratum there is, whatever it is called; a focus comes first."""

from pathlib import Path

import pytest

from aipo.comparison.records import RunRecord, read_run, thinned, write_run
from aipo.comparison.report import RUNS, Facts, Report, write_facts
from aipo.comparison.run import criterion
from aipo.core.types import SoloMode
from aipo.evaluation.records import EvaluationRecord, ProblemResult

ODD = ("primes | $2^n$", "grade 5/6")


def evaluation(method: str, seed: int, step: int, mode: str, strata: tuple[str, ...]) -> EvaluationRecord:
    results = tuple(
        ProblemResult(
            problem=f"{stratum}-{i}",
            stratum=stratum,
            samples=4,
            correct=(i + step + len(method)) % 5,
            ungraded=0,
            truncated=0,
        )
        for stratum in strata
        for i in range(6)
    )
    return EvaluationRecord(
        schema=1,
        run=f"{method}-{seed}",
        method=method,
        seed=seed,
        step=step,
        split="test",
        mode=mode,
        results=results,
    )


def recorded(folder: Path, strata: tuple[str, ...], *focus: str, modes: tuple[str, ...] = ()) -> Report:
    """Write two methods with two seeds, read back."""
    for method, tokens in (("GRPO", 0), ("AIPO", 100)):
        for seed in (0, 1):
            rows = [
                {"step": step, "reward_solo": 0.5, "expert_tokens_raw": tokens * step}
                | {"expert_tokens_distinct": tokens, "consultations/critic": 0.5}
                | {f"reward_solo/{stratum}": step / 4 for stratum in strata}
                for step in (1, 2)
            ]
            evaluations = tuple(
                evaluation(method, seed, step, mode, strata)
                for step in (1, 2)
                for mode in modes or tuple(SoloMode)
            )
            run = RunRecord(
                method=method,
                seed=seed,
                settings="",
                learning_rate=1e-4,
                warmstart="",
                commit="c0ffee",
                machine="1 core",
                versions={},
                wall_s=1.0,
                evaluations=evaluations,
                metrics=thinned(rows),
            )
            write_run(folder / RUNS / f"{method}-{seed}.json", run)
    write_facts(
        folder,
        Facts(
            name="A user's data",
            command="aipo compare",
            baseline="GRPO",
            methods=("GRPO", "AIPO"),
            tuning=(),
            missing=0,
            focus=focus,
        ),
    )
    return Report(folder, (1, 4))


@pytest.mark.parametrize("strata", [("all",), ODD])
def test_every_stratum_has_its_figure_its_differences_and_its_tokens(
    strata: tuple[str, ...], tmp_path: Path
) -> None:
    page = recorded(tmp_path, strata).write(tmp_path / "out").read_text()
    for figure in ("boundary", "training", "expert_tokens"):
        assert f"]({figure}.svg)" in page and (tmp_path / "out" / f"{figure}.png").exists()
    for stratum in strata:
        shown = stratum.replace("|", r"\|")
        assert f"Paired differences to GRPO, {stratum} problems" in page
        assert f" {shown}, unanswered, pass@4 |" in page
        assert f"| {shown}, banned, pass@1 |" in page
        assert f"{shown}: 6 problems" in page.replace(stratum, shown)
    tables = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    escaped = [line.count(r"\|") for line in page.splitlines() if line.startswith("|")]
    columns = {cells - bars for cells, bars in zip(tables, escaped, strict=True)}
    modes, ks, fixed = 2, 2, 4
    assert columns == {2 + len(strata) * modes * ks, 3 + modes, 1 + fixed + len(strata)}


def test_a_focus_comes_first_and_alone_in_figures_and_differences(tmp_path: Path) -> None:
    report = recorded(tmp_path, ODD, ODD[1])
    assert [(c.stratum, c.k) for c in report.table(modes=["banned"]).columns] == [
        (ODD[1], 1),
        (ODD[1], 4),
        (ODD[0], 1),
    ]
    assert report.others == ODD[:1] and ODD[0] not in report.differences() + report.token_table()


def test_quality_is_set_against_tokens_in_a_mode_that_was_evaluated(tmp_path: Path) -> None:
    assert "all, banned, pass@4" in recorded(tmp_path, ("all",), modes=("banned",)).token_table()


def test_rewards_of_every_stratum_and_consultations_of_every_agent_are_kept(tmp_path: Path) -> None:
    recorded(tmp_path, ODD)
    kept = read_run(tmp_path / RUNS / "AIPO-0.json").metrics[0]
    assert {f"reward_solo/{stratum}" for stratum in ODD} | {"consultations/critic"} <= kept.keys()


def test_a_focus_weighs_as_much_as_all_other_strata_and_without_one_all_weigh_alike() -> None:
    shares = {"a": 0, "b": 2, "c": 4}  # of 4 samples
    results = tuple(
        ProblemResult(problem=name, stratum=name, samples=4, correct=correct, ungraded=0, truncated=0)
        for name, correct in shares.items()
    )
    record = EvaluationRecord(
        schema=1, run="r", method="m", seed=0, step=1, split="validation", mode="banned", results=results
    )
    assert criterion([record], []) == criterion([record], ["another"]) == 0.5
    assert criterion([record], ["a"]) == (0 + (0.5 + 1) / 2) / 2
    assert criterion([record], ["b", "c"]) == criterion([record], ["a"])
