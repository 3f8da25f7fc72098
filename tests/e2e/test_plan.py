"""`aipo plan` as a user calls it: tables, JSON, a recipe, a run, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.policies import run_cli

SMALL = ("--prompts", "16", "--response-tokens", "500", "--max-response-tokens", "4000", "--sizes", "4,8")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


def planned(*arguments: str) -> dict[str, Any]:
    result = run_cli("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def test_the_tables_say_where_time_memory_and_money_go() -> None:
    result = run_cli(
        "plan", "--model", "qwen2.5-7b", "--gpus", "8", "--gpu", "h100", "--agent-servers", "2", *SMALL
    )
    assert result.exit_code == 0, result.output
    for words in (
        "7.62 B parameters; 8 x h100",
        "decode, long tail included",
        "weights to the engine",
        "GPU-hours of 300 steps",
        "key-value cache",
        "in the queue of 2 servers",
        "efficiency",
        "docs/planning.md",
    ):
        assert words in result.output, f"{words!r} is not in:\n{result.output}"


def test_json_holds_what_the_tables_show_and_is_the_same_every_time() -> None:
    record = planned(*SMALL)
    assert record["step_s"] == pytest.approx(sum(record["time_s"].values()))
    assert [row["gpus"] for row in record["scaling"]] == [4, 8]
    assert record["scaling"][1]["step_s"] == record["step_s"]
    assert record == planned(*SMALL)
    assert record["step_s"] != planned(*SMALL, "--seed", "1")["step_s"]


def test_every_option_reaches_the_plan() -> None:
    base = planned(*SMALL)
    for option, value in {
        "--model": "qwen2.5-1.5b", "--gpu": "a100", "--gpus": "16", "--nodes": "2", "--tensor-parallel": "2",
        "--max-sequences": "4", "--rollouts": "4", "--solo-fraction": "0.25", "--prompt-tokens": "900",
        "--response-spread": "0.2", "--grade-s": "3", "--consultations": "verify=1",
        "--max-consultations": "2",
        "--request-tokens": "200", "--feedback-tokens": "600", "--agent-latency-s": "8",
        "--agent-timeout-s": "1",
        "--agent-servers": "1", "--agent-concurrency": "1", "--agent-tokens-s": "50", "--agent-gpus": "4",
        "--minibatches": "1", "--steps": "7", "--mfu": "0.2", "--shard-gpus": "4", "--seed": "3",
        "--microbatch-tokens": "20000", "--servers": "3",
    }.items():  # fmt: skip
        changed = planned(*SMALL, option, value)
        assert changed != base, option
        assert {**changed, "setting": 0} != {**base, "setting": 0}, (
            f"{option} stands in the setting and changes nothing"
        )
    for flag in ("--no-old-log-probs", "--chunked-logits", "--offload"):
        changed = planned(*SMALL, flag)
        assert {**changed, "setting": 0} != {**base, "setting": 0}, flag
    flat = (*SMALL, "--microbatch-tokens", "2048", "--max-response-tokens", "1000", "--prompt-tokens", "10")
    assert (
        planned(*flat, "--gpu", "h200", "--no-checkpointing")["step_s"]
        < planned(*flat, "--gpu", "h200")["step_s"]
    )
    tail = planned(*SMALL, "--agent-latency-s", "2", "--agent-latency-p95-s", "20")
    assert tail["setting"]["workload"]["latency_s"]["sigma"] == pytest.approx(1.4, rel=0.01)
    assert planned(*SMALL, "--grade-workers", "1", "--grade-s", "3")["time_s"]["grade"] > 100


def test_sizes_come_from_a_recipe_and_options_win(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[policy]\nmodel = "Qwen/Qwen2.5-7B-Instruct"\n'
        "[rollout]\nrollouts_per_prompt = 4\nmax_response_tokens = 2000\nsolo_fraction = 0.25\n"
        "[train]\nprompts_per_step = 12\nsteps = 40\nminibatches_per_step = 2\nmicrobatch_tokens = 2048\n"
        '[agents]\nenabled = ["verify"]\ntimeout_s = 9.0\n'
    )
    setting = planned(str(recipe), "train.steps=50", "--rollouts", "6", "--sizes", "")["setting"]
    work = setting["workload"]
    assert (work["prompts_per_step"], work["rollouts_per_prompt"], work["solo_fraction"]) == (12, 6, 0.25)
    assert setting["training"]["gradient_checkpointing"] is True  # `auto`, for a policy of this size
    assert (work["response_tokens"]["mean"], work["response_tokens"]["most"]) == (1000, 2000)
    assert work["consultations"] == {"verify": 0.5} and work["latency_s"]["most"] == 9.0
    assert (setting["steps"], setting["training"]["minibatches"]) == (50, 2)
    assert setting["model"]["name"] == "qwen2.5-7b"


def test_policy_servers_of_a_recipe_have_gpus_of_their_own(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    shape = '[policy]\nmodel = "Qwen/Qwen2.5-7B-Instruct"\n[rollout]\nmax_response_tokens = 2000\n'
    recipe.write_text(shape + '[engine]\nname = "vllm"\nurls = ["http://a:1", "http://b:1"]\n')
    alone = planned(str(recipe), "engine.name=transformers", "--sizes", "", "--gpus", "4")
    named = planned(str(recipe), "--sizes", "", "--gpus", "4")
    started = planned(str(recipe), "engine.start=true", "engine.servers=3", "--sizes", "", "--gpus", "4")
    assert (named["replicas"], started["replicas"]) == (2, 3)
    assert (alone["setting"]["servers"], named["setting"]["servers"]) == (None, 2)
    assert named["memory_bytes"]["rollout_resident"] == 0 < alone["memory_bytes"]["rollout_resident"]
    gpus = named["gpu_hours_per_step"] / (named["step_s"] / 3600)
    of_alone = alone["gpu_hours_per_step"] / (alone["step_s"] / 3600)
    assert gpus == pytest.approx(of_alone + 2 * named["tensor_parallel"])


def test_rates_come_from_a_run(tmp_path: Path) -> None:
    line = {"step": 1, "consultations/verify": 1.25, "outcomes/answered": 4.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "timings.jsonl").write_text(json.dumps({"step": 1, "consult_s": 6.0}) + "\n")
    work = planned("--like", str(tmp_path), "--prompts", "8", "--sizes", "")["setting"]["workload"]
    assert work["consultations"] == {"verify": 1.25}
    assert work["latency_s"]["mean"] == 1.5
    given = planned("--like", str(tmp_path), "--prompts", "8", "--sizes", "", "--consultations", "0.3")
    assert given["setting"]["workload"]["consultations"] == {"verify": 0.3}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--gpus", "1"],
            "does not fit: the update needs 176 GB a GPU of 72 usable; at least 4 GPUs are needed",
        ),
        (
            ["--no-checkpointing"],
            "needs 183 GB a GPU of 72 usable; no number of GPUs helps, but --checkpointing would",
        ),
        (["--model", "gpt-9"], "--model 'gpt-9' is neither a preset"),
        (["--gpu", "b200"], "--gpu 'b200' is none of a100, h100, h200"),
        (["--gpus", "9", "--nodes", "1"], "--gpus 9 and --nodes 1 contradict each other"),
        (["--consultations", "often"], "--consultations 'often': a number"),
        (["--consultations", "5"], "--consultations adds up to 5 per rollout; 0 to 3"),
        (["--sizes", "8,many"], "--sizes 'many'"),
        (
            ["--response-tokens", "9000", "--max-response-tokens", "8000"],
            "more than --max-response-tokens 8000",
        ),
        (["--agent-latency-p95-s", "3"], "needs --agent-latency-s"),
        (["--agent-latency-s", "5", "--agent-latency-p95-s", "3"], "is not above --agent-latency-s 5"),
        (["--tensor-parallel", "3"], "--tensor-parallel 3 must divide 8 GPUs"),
        (["--like", "nowhere"], "--like 'nowhere': no metrics.jsonl"),
        (["recipes/none.toml"], "recipes/none.toml"),
        (["recipes/tiny.toml"], "the recipe's policy.model 'runs/warmstart/policy' is neither a preset"),
    ],
)
def test_bad_input_is_one_error_that_names_it(arguments: list[str], words: str) -> None:
    result = run_cli("plan", *arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_the_help_says_what_a_newcomer_needs() -> None:
    text = " ".join(run_cli("plan", "--help").output.replace("│", " ").split()).lower()
    for words in (
        "--model",
        "--gpus",
        "--like",
        "--agent-servers",
        "how it scales",
        "docs/planning.md",
        "--json",
    ):
        assert words in text, text
