"""The report's data: which runs and rollouts, what is counted of them, and that none of it can act.

Proves: the sample repeats, holds whole groups and every step; what is compared comes from the same groups;
credit is the run's own; hostile text leaves the data element in no way; damage is said, never hidden.
"""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from aipo.config.loader import load_settings
from aipo.evaluation.table import Grid
from aipo.report.folders import read_runs
from aipo.report.page import ReportSettings, html_page, inert_json, report_data, write_report
from aipo.report.results import shown as shown_table
from aipo.report.scan import Scan, scan
from aipo.report.value import MAY_CONSULT, ValueOfConsultation, Worth
from aipo.report.weights import credited, weight
from aipo.training.journal import RunFolderError
from support.policies import run_cli
from support.reports import HOSTILE, RunWriter, consultation, group, rollout, segment

VERDICTS = ("correct", "incorrect", "incorrect", "incorrect")


def shown(folder: Path, rollouts: int = 400, **changes: Any) -> dict[str, Any]:
    return report_data(read_runs([folder]), ReportSettings(rollouts=rollouts, **changes))


def embedded(page: bytes) -> Any:
    text = page.decode()
    return json.loads(text.split('id="data">', 1)[1].split("</script>", 1)[0])


def seen_steps(path: Path, rollouts: int, seed: int = 0) -> list[tuple[int, str]]:
    _, groups = scan(path, rollouts, seed, lambda rows: None)
    return [(rows[0]["step"], rows[0]["problem"]) for rows in groups]


class TestSample:
    @pytest.fixture
    def recorded(self, tmp_path: Path) -> Path:
        rows = [row for s in range(1, 11) for p in range(9) for row in group(s, f"p{p}", VERDICTS)]
        return RunWriter(tmp_path / "run").lines("rollouts.jsonl", rows).folder / "rollouts.jsonl"

    def test_every_recorded_step_has_the_same_share_of_whole_groups(self, recorded: Path) -> None:
        chosen = seen_steps(recorded, 80)  # 20 groups of 4
        assert len(chosen) == 20
        assert sorted(step for step, _ in chosen) == sorted([*range(1, 11)] * 2)
        assert len(set(chosen)) == 20

    def test_the_first_groups_are_of_different_steps_so_that_a_cut_takes_none_away(
        self, recorded: Path
    ) -> None:
        assert {step for step, _ in seen_steps(recorded, 80)[:10]} == set(range(1, 11))

    def test_it_repeats_and_another_seed_is_another_sample(self, recorded: Path) -> None:
        assert seen_steps(recorded, 80) == seen_steps(recorded, 80)
        assert set(seen_steps(recorded, 80)) != set(seen_steps(recorded, 80, seed=1))

    def test_with_fewer_groups_than_steps_the_first_and_the_last_step_stay(self, recorded: Path) -> None:
        steps = [step for step, _ in seen_steps(recorded, 12)]
        assert len(steps) == 3
        assert {1, 10} <= set(steps)

    def test_all_is_shown_where_there_is_little(self, recorded: Path) -> None:
        assert len(seen_steps(recorded, 10_000)) == 90

    def test_a_problem_drawn_twice_in_a_step_is_two_groups(self, tmp_path: Path) -> None:
        rows = [*group(1, "p", VERDICTS), *group(1, "p", VERDICTS)]
        RunWriter(tmp_path / "run").lines("rollouts.jsonl", rows)
        found, groups = scan(tmp_path / "run" / "rollouts.jsonl", 400, 0, lambda rows: None)
        assert (found.groups, [len(rows) for rows in groups]) == (2, [4, 4])

    def test_a_torn_last_line_and_foreign_lines_are_counted_and_left_out(self, tmp_path: Path) -> None:
        folder = RunWriter(tmp_path / "run").metrics().lines("rollouts.jsonl", group(1, "p", VERDICTS)).folder
        with (folder / "rollouts.jsonl").open("a") as file:
            file.write(json.dumps(rollout(1, "q", 0) | {"schema": 2}) + '\n[1]\n\n{"step": 2, "roll')
        run = shown(folder)["runs"][0]
        assert run["recorded"]["rollouts"] == 4
        assert any("3 lines of rollouts.jsonl are no records" in w for w in run["summary"]["warnings"])

    def test_no_file_is_no_rollout(self, tmp_path: Path) -> None:
        assert scan(tmp_path / "none.jsonl", 400, 0, lambda rows: None) == (Scan(), [])


class TestValueOfConsultation:
    @staticmethod
    def worths(groups: list[list[dict[str, Any]]]) -> dict[str, Worth]:
        value = ValueOfConsultation()
        for rows in groups:
            value.see(rows)
        return {worth.what: worth for worth in value.worths()}

    def test_both_sides_come_from_the_same_groups(self) -> None:
        both = group(1, "p", ("correct", "incorrect", "incorrect", "correct"))
        nobody_asked = [row | {"consultations": []} for row in group(1, "q", ("correct",) * 4)]
        found = self.worths([both, both, nobody_asked])
        knowledge, allowed = found["knowledge"], found[MAY_CONSULT]
        assert (knowledge.groups, knowledge.share_with.value, knowledge.share_without.value) == (2, 1.0, 0.0)
        assert (allowed.groups, allowed.rollouts_with, allowed.rollouts_without) == (3, 6, 6)
        assert allowed.share_with.value == pytest.approx((0.5 + 0.5 + 1) / 3)

    def test_ungraded_rollouts_are_on_neither_side(self) -> None:
        rows = group(1, "p", ("ungraded", "correct", "correct", "incorrect"))
        found = self.worths([rows])
        assert "knowledge" not in found  # the only one who asked has no verdict
        assert found[MAY_CONSULT].rollouts_with == 1

    def test_an_agent_that_was_asked_and_did_not_answer_is_no_help(self) -> None:
        rows = group(1, "p", VERDICTS)
        rows[0]["consultations"] = [consultation("knowledge", "a dog?", outcome="timeout")]
        assert "knowledge" not in self.worths([rows])

    def test_many_groups_have_the_interval_of_few_scaled(self) -> None:
        kinds = [group(1, "p", v) for v in (VERDICTS, ("incorrect", "correct", "correct", "incorrect"))]
        few = self.worths([kinds[i % 3 == 0] for i in range(999)])["knowledge"].difference
        many = self.worths([kinds[i % 3 == 0] for i in range(1002)])["knowledge"].difference
        assert many.value == pytest.approx(few.value, abs=0.01)
        assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.05)

    def test_the_requests_asked_most_come_first_with_what_came_of_them(self) -> None:
        value = ValueOfConsultation()
        for index in range(3):
            value.see(group(1, f"p{index}", ("correct" if index else "incorrect", *VERDICTS[1:])))
        value.see([rollout(1, "q", 0, consultations=[consultation(None, "")])])
        first, second = value.most_asked(2)
        assert (first.agent, first.request, first.times, first.answered, first.correct) == (
            "knowledge",
            "a dog?",
            3,
            3,
            2,
        )
        assert (second.agent, second.times) == ("malformed", 1)


class TestCredit:
    def test_it_is_what_training_computes_from_the_same_verdicts(self) -> None:
        credits = credited(group(1, "p", VERDICTS), load_settings(None))
        assert [round(c.policy or 0, 3) for c in credits] == [0.707, -0.707, 0, 0]
        assert [c.feedback for c in credits] == [1.0, 0.0, 0.0, 0.0]

    def test_what_the_record_does_not_tell_is_none(self) -> None:
        rows = group(1, "p", ("ungraded", *VERDICTS[1:]))
        assert credited(rows, load_settings(None))[0].policy is None
        coins = load_settings(None, ["train.reward=random", "train.dynamic_sampling_rounds=1"])
        assert [c.policy for c in credited(rows, coins)] == [None] * 4

    def test_an_expert_in_the_group_raises_the_baseline(self) -> None:
        with_expert = load_settings(None, ["rollout.experts_per_prompt=1", "algorithm.split_baselines=false"])
        without = load_settings(None, ["algorithm.split_baselines=false"])
        rows = group(1, "p", VERDICTS)
        assert (credited(rows, with_expert)[0].policy or 0) < (credited(rows, without)[0].policy or 0)

    @pytest.mark.parametrize(
        ("coefficient", "expected"),
        [("floored", 0.1), ("unit", 0.05), ("masked", 0.0), ("likelihood", 1.0), ("attenuated", 0.5)],
    )
    def test_the_weight_of_a_rare_token_is_the_coefficients(self, coefficient: str, expected: float) -> None:
        settings = load_settings(None, [f"algorithm.coefficient={coefficient}"])
        assert weight(0.05, settings, 1) == pytest.approx(expected)

    def test_a_scheduled_floor_is_that_of_the_step(self) -> None:
        settings = load_settings(None, ["algorithm.floor_end=0.3", "train.steps=3"])
        assert [round(weight(0.01, settings, step), 3) for step in (1, 2, 3)] == [0.1, 0.2, 0.3]


class TestHostileText:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_it_comes_back_from_the_page_as_it_was(self, name: str) -> None:
        page = html_page(HOSTILE[name], {"x": HOSTILE[name]})
        assert embedded(page) == {"x": HOSTILE[name]}
        assert page.decode()

    @pytest.mark.parametrize("name", HOSTILE)
    def test_it_neither_ends_the_element_nor_starts_a_tag(self, name: str) -> None:
        text = inert_json({HOSTILE[name]: HOSTILE[name]})
        assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", text)

    def test_a_page_has_the_same_tags_whatever_the_data_says(self) -> None:
        hostile = html_page("".join(v for k, v in HOSTILE.items() if k != "half"), HOSTILE)
        tame = html_page("runs", dict.fromkeys(HOSTILE, "x"))
        assert re.findall(rb"<[a-z/!]+", hostile) == re.findall(rb"<[a-z/!]+", tame)

    def test_the_policy_allows_these_scripts_by_hash_and_no_request(self) -> None:
        page = html_page("runs", {}).decode()
        policy = unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])  # type: ignore[index]
        script, style = page.rsplit("<script>", 1)[1], page.split("<style>", 1)[1]
        for text, directive in (
            (script.split("</script>")[0], "script"),
            (style.split("</style>")[0], "style"),
        ):
            digest = b64encode(sha256(text.encode()).digest()).decode()
            assert f"{directive}-src 'sha256-{digest}'" in policy
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy

    def test_no_script_writes_markup(self) -> None:
        page = html_page("runs", {}).decode()
        script = page.rsplit("<script>", 1)[1]
        for door in (
            "innerHTML =",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
        ):
            assert door not in script, door

    def test_a_million_characters_are_bounded_and_the_rest_is_counted(self, tmp_path: Path) -> None:
        rows = group(1, "p", VERDICTS)
        for row in rows:
            row["segments"] = [segment("prompt", "x"), segment("policy", "word " * 200_000)]
        run = RunWriter(tmp_path / "run").metrics().lines("rollouts.jsonl", rows)
        written = write_report([run.folder], tmp_path / "report.html", ReportSettings())
        assert written.bytes < 2_000_000
        text = embedded((tmp_path / "report.html").read_bytes())["runs"][0]["groups"][0]["rollouts"][0]
        policy = text["segments"][1]
        assert len(policy["text"]) + policy["more"] == 1_000_000

    def test_the_file_stays_small_whatever_is_asked_for(self, tmp_path: Path) -> None:
        rows = [row for p in range(60) for row in group(1, f"p{p}", VERDICTS)]
        for row in rows:
            row["segments"] = [segment("prompt", "x"), segment("policy", "word " * 7_000)]
        run = RunWriter(tmp_path / "run").lines("rollouts.jsonl", rows).metrics(200)
        written = write_report([run.folder], tmp_path / "report.html", ReportSettings(rollouts=10_000))
        assert written.bytes < 5_000_000
        assert 8 <= written.rollouts < written.recorded == 240


class TestRuns:
    def test_runs_with_equal_names_and_seeds_are_told_apart_by_their_paths(self, tmp_path: Path) -> None:
        for name in ("a/aipo/seed-0", "b/aipo/seed-0"):
            RunWriter(tmp_path / name).metrics()
        assert [run.method for run in read_runs([tmp_path / "a", tmp_path / "b"])] == ["a/aipo", "b/aipo"]

    def test_a_run_named_twice_is_one_run(self, tmp_path: Path) -> None:
        folder = RunWriter(tmp_path / "run").metrics().folder
        assert len(read_runs([folder, folder / ".." / "run"])) == 1

    def test_settings_of_another_version_are_said_and_the_rest_is_shown(self, tmp_path: Path) -> None:
        folder = RunWriter(tmp_path / "run").metrics().lines("rollouts.jsonl", group(1, "p", VERDICTS)).folder
        with (folder / "settings.toml").open("a") as file:
            file.write("\n[gone]\nfield = 1\n")
        run = shown(folder)["runs"][0]
        assert "another version" in run["summary"]["warnings"][0]
        assert run["groups"][0]["rollouts"][0]["credit"] == [None, None]

    def test_warnings_name_what_went_wrong_and_where(self, tmp_path: Path) -> None:
        bad = {"ungraded_share": 0.25, "zero_variance_share": 0.75, "truncated_share": 0.5}
        failed = {"failures/knowledge/timeout": 3.0, "unreadable_replies/verify": 2.0}
        rows = [rollout(1, "p", 0, "ungraded", reason="engine: lost")]
        folder = RunWriter(tmp_path / "run").metrics(**bad, **failed).lines("rollouts.jsonl", rows).folder
        warnings = "\n".join(shown(folder)["runs"][0]["summary"]["warnings"])
        for words in ("25.0%", "75.0%", "50.0%", "6 timeout", "4 replies could not be read", "engine: lost"):
            assert words in warnings
        assert "Not finished: 2 of 200" in warnings

    def test_a_nan_is_no_point_and_no_crash(self, tmp_path: Path) -> None:
        folder = (
            RunWriter(tmp_path / "run")
            .lines("metrics.jsonl", [{"step": 1, "entropy": float("nan")}, {"step": 2, "entropy": 0.5}])
            .folder
        )
        entropy = next(p for p in shown(folder)["panels"] if p["title"] == "Entropy")
        assert entropy["series"][0]["points"] == [[2, 0.5]]

    @pytest.mark.parametrize("log_prob", [float("nan"), float("-inf")])
    def test_a_log_probability_that_is_none_is_not_shown_and_no_crash(
        self, log_prob: float, tmp_path: Path
    ) -> None:
        rows = group(1, "p", VERDICTS)
        feedback = next(s for s in rows[0]["segments"] if s["source"] == "feedback")
        feedback["policy_log_probs"] = [log_prob] * len(feedback["ids"])
        folder = RunWriter(tmp_path / "run").metrics().lines("rollouts.jsonl", rows).folder
        segments = shown(folder)["runs"][0]["groups"][0]["rollouts"][0]["segments"]
        by_source = {segment["source"]: segment for segment in segments}
        assert not {"nats", "weights"} & by_source["feedback"].keys() and "nats" in by_source["policy"]

    def test_latencies_stand_with_their_consultations(self, tmp_path: Path) -> None:
        run = RunWriter(tmp_path / "run").metrics().lines("rollouts.jsonl", group(1, "p", VERDICTS))
        run.lines("timings.jsonl", [{"step": 1, "consultations_s": {"p#0": [0.25]}}])
        rollouts = shown(run.folder)["runs"][0]["groups"][0]["rollouts"]
        assert rollouts[0]["consultations"][0]["latency_s"] == 0.25

    def test_nothing_is_written_into_a_run_but_the_report(self, tmp_path: Path) -> None:
        folder = RunWriter(tmp_path / "run").metrics().folder
        before = {path: path.read_bytes() for path in folder.iterdir()}
        assert run_cli("report", folder).exit_code == 0
        assert {p: p.read_bytes() for p in folder.iterdir() if p.name != "report.html"} == before

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["{}/none"], "no run here"),
            (["{}/run", "--baseline", "grpo"], "'grpo' is no method"),
            (["{}/run", "--output", "{}"], "is a folder"),
        ],
    )
    def test_bad_input_is_one_plain_error(self, arguments: list[str], words: str, tmp_path: Path) -> None:
        RunWriter(tmp_path / "run").metrics()
        result = run_cli("report", *(a.replace("{}", str(tmp_path)) for a in arguments))
        assert result.exit_code == 2
        assert words in " ".join(result.output.split())
        assert not list(tmp_path.rglob("*.html*"))

    def test_a_path_without_a_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RunFolderError, match="no run here"):
            read_runs([tmp_path])


class TestResults:
    def test_methods_are_compared_pair_by_pair_with_the_baseline(self, tmp_path: Path) -> None:
        for name, correct in (("grpo", [0, 1, 0, 0]), ("aipo", [4, 3, 4, 4])):
            RunWriter(tmp_path / name / "seed-0", "evaluate.pass_at=[1,4]").evaluated(5, correct)
        data = report_data(read_runs([tmp_path]), ReportSettings(baseline="grpo"))
        results, paired = data["results"]["tables"]
        assert list(results["head"]) == ["method", "hard, unanswered, pass@1", "hard, unanswered, pass@4"]
        assert results["rows"][0][1].startswith(".94 [")
        assert paired["rows"][0][0] == "aipo"
        assert paired["rows"][0][2].startswith("+0.875 [")
        assert "| aipo | .94 [" in results["markdown"]
        assert r"\begin{tabular}{lrr}" in results["latex"]

    @pytest.mark.parametrize("strata", [("all",), ("primes | $2^n$", "a_b/c")])
    def test_every_stratum_has_its_curves_its_differences_and_its_tokens(
        self, strata: tuple[str, ...], tmp_path: Path
    ) -> None:
        spent = {"expert_tokens_raw": 900.0, "expert_tokens_distinct": 200.0}
        for name, correct in (("grpo", [0, 1, 0, 0]), ("aipo", [4, 3, 4, 4])):
            rewards = {f"reward_solo/{stratum}": 0.5 for stratum in strata}
            run = RunWriter(tmp_path / name / "seed-0", "evaluate.pass_at=[1,4]")
            run.metrics(**rewards, **(spent if name == "aipo" else {}))
            run.evaluated(1, [0, 0, 0, 0], strata=strata).evaluated(2, correct, strata=strata)
        data = report_data(read_runs([tmp_path]), ReportSettings(baseline="grpo"))
        assert [p["title"] for p in data["boundary"]] == [f"pass@k · {s} · unanswered" for s in strata]
        assert [p["title"] for p in data["accuracy"]] == [f"Accuracy · {s} · unanswered" for s in strata]
        results, *paired, tokens = data["results"]["tables"]
        assert len(results["head"]) == 1 + 2 * len(strata)
        assert [stratum in table["title"] for stratum, table in zip(strata, paired, strict=True)]
        assert tokens["head"][4:] == tuple(f"{stratum}, unanswered, pass@4" for stratum in strata)
        assert tokens["rows"][-1][:4] == ("aipo", "2", "900", "200")
        by_stratum = [p["title"] for p in data["panels"] if p["title"].startswith("Reward on")]
        assert by_stratum == ([f"Reward on {s} problems: solo" for s in strata] if len(strata) > 1 else [])

    def test_what_cannot_be_compared_is_said(self, tmp_path: Path) -> None:
        RunWriter(tmp_path / "grpo" / "seed-0").evaluated(5, [0, 1])
        RunWriter(tmp_path / "aipo" / "seed-0").evaluated(5, [0, 1, 2])
        data = report_data(read_runs([tmp_path]), ReportSettings())
        assert any("different problems" in note for note in data["results"]["tables"][1]["notes"])

    def test_seeds_of_a_method_are_one_line_and_the_first_step_is_before(self, tmp_path: Path) -> None:
        for seed in (0, 1):
            run = RunWriter(tmp_path / "aipo" / f"seed-{seed}", f"run.seed={seed}")
            run.evaluated(1, [0, 0, 1], seed=seed).evaluated(9, [4, 3, 4], seed=seed)
        data = report_data(read_runs([tmp_path]), ReportSettings())
        (accuracy,) = data["accuracy"]
        assert [line["label"] for line in accuracy["series"]] == ["unanswered"]
        assert [point[0] for point in accuracy["series"][0]["points"]] == [1, 9]
        assert {line["label"] for line in data["boundary"][0]["series"]} == {"after", "before"}

    def test_of_evaluations_made_again_the_last_one_counts(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        RunWriter(folder).metrics().evaluated(1, [0, 0]).evaluated(2, [0, 0]).evaluated(2, [4, 4])
        [panel] = [p for p in shown(folder)["accuracy"] if "hard" in p["title"]]
        assert [point[:2] for point in panel["series"][0]["points"]] == [[1, 0.0], [2, 1.0]]

    def test_copies_escape_what_their_language_reads(self) -> None:
        table = shown_table("t", Grid([("method", "a|b"), ("x_1 & 50 %\n{}", "1")], ("note",)))
        assert r"| x_1 & 50 % {} | 1 |" in table["markdown"]
        assert r"a\|b" in table["markdown"]
        assert r"x\_1 \& 50 \% \{\} & 1 \\" in table["latex"]
