"""Goldens of the results table, and plots that are files with something in them, twice the same."""

import csv
import io
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest

from aipo.evaluation.plots import TokenPoint, boundary_plot, expert_token_plot, training_plot
from aipo.evaluation.records import EvaluationRecord, ProblemResult
from aipo.evaluation.table import results_table


def record(
    method: str, mode: str, hard: tuple[int, ...], ungraded: int = 0, seed: int = 0
) -> EvaluationRecord:
    results = [
        ProblemResult(problem=f"h{i}", stratum="hard", samples=8, correct=c, ungraded=ungraded, truncated=0)
        for i, c in enumerate(hard)
    ]
    results += [
        ProblemResult(problem=f"e{i}", stratum="easy", samples=8, correct=8, ungraded=0, truncated=0)
        for i in range(3)
    ]
    return EvaluationRecord(
        schema=1,
        run=f"{method}-{seed}",
        method=method,
        seed=seed,
        step=100,
        split="test",
        mode=mode,
        results=tuple(results),
    )


RECORDS = [
    record("GRPO", "unanswered", (0, 0, 0)),
    record("AIPO|floored", "unanswered", (4, 4, 4)),
    record("AIPO|floored", "banned", (2, 2, 2), ungraded=1),
]

MARKDOWN = """\
| method | hard, unanswered, pass@1 | hard, unanswered, pass@8 | hard, banned, pass@1 | hard, banned, pass@8 |
|---|---|---|---|---|
| GRPO | .00 [.00, .00] | .00 [.00, .00] | – | – |
| AIPO\\|floored | .50 [.50, .50] | 1.0 [1.0, 1.0] | .29 [.29, .29] | – |

hard: 3 problems; 7-8 graded samples per problem; training seeds: 1.__
[ ]: 95 % interval, bootstrap over problems and, from 2 on, seeds.__
An interval of width 0 means no variation seen, not certainty.__
pass@8 of 8 samples is one draw per problem: unbiased, noisy.__
Up to 3 problems with fewer than k graded samples are left out.
""".replace("__", "  ")

TEXT = """\
method        hard, unanswered, pass@1
GRPO          .00 [.00, .00]
AIPO|floored  .50 [.50, .50]

hard: 3 problems; 8 graded samples per problem; training seeds: 1.
[ ]: 95 % interval, bootstrap over problems and, from 2 on, seeds.
An interval of width 0 means no variation seen, not certainty.
"""


def test_markdown_golden() -> None:
    table = results_table(RECORDS, {"hard": (1, 8), "easy": ()})
    assert table.markdown() == MARKDOWN


def test_terminal_golden() -> None:
    assert str(results_table(RECORDS, (1,), strata=("hard",), modes=("unanswered",))) == TEXT


def test_csv_holds_every_estimate_in_full() -> None:
    table = results_table(RECORDS, (1, 8))
    rows = list(csv.DictReader(io.StringIO(table.csv())))
    assert [row["method"] for row in rows] == ["GRPO"] * 4 + ["AIPO|floored"] * 8
    banned = next(row for row in rows if row["mode"] == "banned" and row["stratum"] == "hard")
    assert float(banned["value"]) == pytest.approx(2 / 7)
    assert (banned["k"], banned["problems"], banned["samples"], banned["seeds"]) == ("1", "3", "7", "1")


def test_methods_keep_the_order_in_which_they_were_given() -> None:
    assert [method for method, _ in results_table(RECORDS[::-1], (1,)).rows] == ["AIPO|floored", "GRPO"]


def test_two_steps_of_one_run_are_refused_not_averaged() -> None:
    with pytest.raises(ValueError, match="steps 100 and 200"):
        results_table([RECORDS[0], replace(RECORDS[0], step=200)], (1,))


def assert_same_picture(first: tuple[Path, Path], second: tuple[Path, Path]) -> None:
    assert [path.suffix for path in first] == [".svg", ".png"]
    svg = first[0].read_bytes()
    assert svg == second[0].read_bytes()
    assert b"<dc:date>" not in svg
    assert len(list(ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}path"))) > 20
    assert first[1].read_bytes()[:4] == b"\x89PNG"


def test_boundary_plot_is_deterministic(tmp_path: Path) -> None:
    spread = [
        record("AIPO", mode, (seed, 2, 5), seed=seed) for mode in ("banned", "agents") for seed in range(3)
    ]
    drawn = [
        boundary_plot([*RECORDS, *spread], tmp_path / name, ["hard"]) for name in ("v1.0", "b/again.svg")
    ]
    assert_same_picture(drawn[0], drawn[1])
    assert drawn[0][0] == tmp_path / "v1.0.svg" and drawn[1][1] == tmp_path / "b" / "again.png"
    with pytest.raises(ValueError, match="solo mode"):
        boundary_plot([record("AIPO", "agents", (1,))], tmp_path / "none")


def test_training_plot_is_deterministic_and_skips_what_is_missing(tmp_path: Path) -> None:
    rows = [
        {"step": s, "reward_solo": 0.1 * s, "feedback_prob": None if s < 2 else 0.5, "lr": None}
        for s in (0, 1, 2, 1)
    ]
    drawn = [
        training_plot(
            {"AIPO": rows, "GRPO": rows[:1]}, tmp_path / name, ("reward_solo", "feedback_prob", "lr")
        )
        for name in "ab"
    ]
    assert_same_picture(drawn[0], drawn[1])
    with pytest.raises(ValueError, match="lr"):
        training_plot({"AIPO": rows}, tmp_path / "none", panels=("lr", "absent"))


def test_expert_token_plot_is_deterministic_and_takes_free_methods(tmp_path: Path) -> None:
    def point(
        method: str, updates: int, raw: float, distinct: float, value: float, span: float
    ) -> TokenPoint:
        ends = {"low": value - span, "high": value + span}
        tokens = {"raw_tokens": raw, "distinct_tokens": distinct}
        return TokenPoint(method=method, updates=updates, value=value, **tokens, **ends)

    points = [point("GRPO", u, 0, 0, 0.1, float("nan")) for u in (50, 100)]
    points += [point("AIPO", u, 900.0 * u, 200.0 * u, u / 200, u / 600) for u in (0, 100, 50)]
    drawn = [expert_token_plot({"solo pass@k": points}, tmp_path / name) for name in "ab"]
    assert_same_picture(drawn[0], drawn[1])
    with pytest.raises(ValueError):
        expert_token_plot({}, tmp_path / "none")


def test_without_a_choice_every_stratum_has_a_row_of_the_boundary_figure(tmp_path: Path) -> None:
    def shape(*strata: str) -> tuple[int, ...]:
        return matplotlib.image.imread(boundary_plot(RECORDS, tmp_path / "plot", strata)[1]).shape

    assert shape() == shape("hard", "easy") != shape("hard") == shape("easy")
