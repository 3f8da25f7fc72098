"""A model as the judge, through every verb: asked before the run, learnt from, paid, recorded, shown."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aipo.config.toml import toml_text
from support.policies import random_policy, run_cli, succeed
from support.servers import PROMPT_TOKENS, Asked, ChatServer, Fault, chat_server

Recipe = Callable[..., Path]


@pytest.fixture(scope="module")
def running() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def server(running: ChatServer) -> ChatServer:
    """Tell the canary's two answers apart, and give all others a score that hangs on their text."""
    running.forget()

    def says(asked: Asked) -> str:
        if "60 / 1.5" in asked.user:
            return f"SCORE: {10 if '= 40' in asked.user else 0}"
        response = asked.user.split("\nRESPONSE ")[1].split("\n", 1)[1].split("\nEND OF RESPONSE")[0]
        return f"I have counted.\nSCORE: {sum(response.encode()) % 11}"

    running.says = says
    return running


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, server: ChatServer) -> Recipe:
    def write(fault: Fault = Fault.NONE) -> Path:
        rows = [{"problem": f"What is {a} + {a}?", "answer": 2 * a} for a in range(1, 41)]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        judge = {"base_url": server.url(fault), "model": "j", "price_prompt": 1000.0, "retries": 0}
        table: dict[str, dict[str, Any]] = {
            "run": {"output": str(tmp_path / "run"), "threads": 1},
            "policy": {"model": str(random_policy(tmp_path_factory, "qwen2.5"))},
            "task": {
                "name": "jsonl",
                "match": "exact",
                "reward": {"judge": 1.0},
                "judge": judge,
                "train_file": str(tmp_path / "train.jsonl"),
            },
            "agents": {"enabled": [], "cache_folder": str(tmp_path / "cache")},
            "rollout": {"rollouts_per_prompt": 3, "max_prompt_tokens": 1024, "max_response_tokens": 16},
            "train": {"steps": 2, "prompts_per_step": 2, "minibatches_per_step": 1, "learning_rate": 1e-3},
            "evaluate": {"at_steps": [], "split": "validation", "problems": 2, "samples_per_problem": 2},
        }
        table["evaluate"]["modes"] = ["unanswered"]
        path = tmp_path / "judge.toml"
        path.write_text(toml_text(table))
        return path

    return write


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_judge_is_learnt_from_paid_recorded_and_shown(
    tmp_path: Path, recipe: Recipe, server: ChatServer
) -> None:
    path, run = recipe(), tmp_path / "run"
    succeed("train", path)
    metrics, rollouts, times = (lines(run / f"{name}.jsonl") for name in ("metrics", "rollouts", "timings"))
    assert all(row["grad_norm"] > 0 and row["ungraded_share"] == 0 for row in metrics)
    for row in rollouts:
        assert row["verdict"] == "incorrect"
        assert row["reward"] == pytest.approx(float(row["judged"]["judge"]["said"].split("SCORE: ")[1]) / 10)
    for row in metrics:
        of_step = [one for one in rollouts if one["step"] == row["step"]]
        assert row["judge_prompt_tokens"] == PROMPT_TOKENS * len(of_step) == PROMPT_TOKENS * 6
        assert row["judge_cost"] == pytest.approx(sum(one["judged"]["judge"]["cost"] for one in of_step))
        assert row["judge_failures"] == 0 and row["agent_cost"] == 0
    paid = [row for row in times if "judge_cost_paid" in row]
    assert len(paid) == 2 and paid[0]["judge_cost_paid"] > 0
    assert json.loads((run / "agents.json").read_text())[0]["agents"]["judge"]["model"] == "j"
    succeed("report", run)
    page = (run / "report.html").read_text()
    assert "for judges" in page and "judges read and wrote" in page and "I have counted." in page

    asked = len(server.asked)
    succeed("train", path, f"run.output={tmp_path / 'again'}")
    again = tmp_path / "again"
    assert lines(again / "metrics.jsonl") == metrics and lines(again / "rollouts.jsonl") == rollouts
    assert len(server.asked) == asked + 2  # the canary: all others were kept
    assert all(row["judge_cached_share"] == 1 for row in lines(again / "timings.jsonl") if "update_s" in row)

    said = succeed("evaluate", path, f"run.output={tmp_path / 'alone'}").output
    assert "unanswered, reward" in said
    stops = run_cli("train", path, "guards.max_agent_cost=0.1", f"run.output={tmp_path / 'poor'}")
    assert stops.exit_code != 0 and "consultations and judgements have cost" in " ".join(stops.output.split())


def test_a_judge_is_asked_before_anything_is_spent(
    tmp_path: Path, recipe: Recipe, server: ChatServer
) -> None:
    dead = run_cli("train", recipe(Fault.REFUSED))
    said = " ".join(dead.output.split())
    assert dead.exit_code == 2 and "a judge does not answer; nothing was trained" in said, said
    assert "cannot be reached" in said and "task.judge.base_url" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()

    server.says = lambda asked: "SCORE: 5"
    warned = " ".join(succeed("train", recipe(), "train.steps=1").output.split())
    assert "task.reward: judge gave a right answer 0.50, a wrong one 0.50" in warned


def test_agents_check_and_doctor_ask_the_judge(recipe: Recipe) -> None:
    said = " ".join(succeed("agents", "check", recipe()).output.split())
    assert "judge" in said and "a right answer" in said
    failed = run_cli("agents", "check", recipe(Fault.REFUSED))
    assert failed.exit_code == 1 and "judge: " in failed.output and "cannot be reached" in failed.output
    looked = " ".join(run_cli("doctor", recipe()).output.split())
    assert "a right answer 1.00, a wrong one 0.00" in looked
