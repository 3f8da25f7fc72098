"""Agents that a user really has, from the command line: bad settings, the check, and runs whose agents fail.

Proves: what is missing is one error before training, with field, value and fix; `aipo agents check` prints a
row for each agent and fails for a reason; above the limit of failures a run stops with a summary and goes on
later; Ctrl-C while an agent hangs leaves a run that goes on; a killed run that goes on asks the server only
what it had not asked, and makes the rollouts of one that was never killed; no file holds a key.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.policies import counting_policy, counting_recipe, run_cli, start_cli, succeed
from support.servers import ChatServer, Fault, chat_server, wait_until

pytestmark = pytest.mark.timeout(600)  # the first test makes the policy; others may use the cores
KEY = "sk-the-secret-of-this-test"
Recipe = Callable[..., Path]


@pytest.fixture(scope="module")
def running() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def server(running: ChatServer) -> ChatServer:
    running.forget()
    running.latency_s = 0.0
    return running


@pytest.fixture
def recipe(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, server: ChatServer) -> Recipe:
    """Write the recipe of a short run whose agents answer over HTTP."""

    def write(fault: Fault = Fault.NONE, **agents: object) -> Path:
        remote = {
            "backend": "remote",
            "base_url": server.url(fault),
            "model": "m",
            "retry_wait_s": 0.01,
            "timeout_s": 20.0,
            "price_prompt": 1.0,
            "cache_folder": str(tmp_path / "cache"),
        }
        return counting_recipe(
            tmp_path,
            run={"output": str(tmp_path / "run")},
            policy={"model": str(counting_policy(tmp_path_factory))},
            agents=remote | agents,
            train={"steps": 2, "checkpoint_every_steps": 1},
        )

    return write


def refused(recipe: Path, *overrides: str) -> str:
    result = run_cli("train", recipe, *overrides)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error:") and "Traceback" not in result.output
    assert not (recipe.parent / "run").exists()
    return " ".join(result.output.split())


class TestBadSettings:
    def test_an_unknown_backend_is_refused_with_those_there_are(self, recipe: Recipe) -> None:
        message = refused(recipe(), "agents.backend=remot")
        assert "`agents.backend`" in message and "'remot'" in message and "'remote'" in message

    @pytest.mark.parametrize(
        ("overrides", "parts"),
        [
            (
                ["agents.base_url="],
                ["agents.verify: backend = 'remote' needs a base_url", "agents.verify.base_url"],
            ),
            (["agents.knowledge.model="], ["agents.knowledge: backend = 'remote' needs a model"]),
            (["agents.base_url=localhost:8000"], ["'localhost:8000' is no http(s) address", "base_url ="]),
            (
                ["agents.api_key_env=NO_SUCH_KEY"],
                ["api_key_env = 'NO_SUCH_KEY'", "not set", "export NO_SUCH_KEY"],
            ),
            (["agents.backend=local", "agents.model=./none"], ["agents.model = './none' cannot be loaded"]),
            (["agents.backend=local", "agents.model="], ["backend = 'local' needs a model"]),
            (["agents.verify.context=rollout"], ["`agents.verify.context`", "'problem+request'"]),
            (["agents.verify.contxt=request"], ["unknown key", "did you mean `agents.verify.context`?"]),
        ],
    )
    def test_what_is_missing_or_wrong_is_named_with_the_fix(
        self, recipe: Recipe, overrides: list[str], parts: list[str]
    ) -> None:
        message = refused(recipe(), *overrides)
        assert [part for part in parts if part not in message] == [], message

    def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(self, recipe: Recipe) -> None:
        for field, value in {"base_url": f"http://me:{KEY}@host/v1", "api_key_env": KEY}.items():
            message = refused(recipe(**{field: value}))
            assert f"`agents.{field}`" in message and KEY not in message

    def test_an_agent_that_cannot_be_reached_is_refused_before_training(self, recipe: Recipe) -> None:
        message = refused(recipe(Fault.REFUSED, retries=1))
        assert "nothing was trained" in message and "agents.check_at_start = false" in message
        for agent in ("verify", "knowledge", "reasoning"):
            assert f"agents.{agent}: agent_error: http://127.0.0.1" in message
        assert "cannot be reached (2 attempts)" in message

    def test_a_cache_that_cannot_be_made_is_refused(self, recipe: Recipe, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("x")
        assert "agents.cache_folder" in refused(recipe())
        succeed("train", recipe(), "--no-cache", "train.steps=1")


class TestCheck:
    def test_agents_that_answer_get_a_row_each(
        self, recipe: Recipe, server: ChatServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("KEY_OF_THE_TEST", KEY)
        result = succeed("agents", "check", recipe(api_key_env="KEY_OF_THE_TEST"), "--tries", "2")
        for agent in ("verify", "knowledge", "reasoning"):
            row = next(line for line in result.output.splitlines() if agent in line)
            assert "140 + 60" in row and "0.000140" in row and "2/2" in row and "ok" in row
        assert len(server.asked) == 6 and KEY not in result.output
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            (Fault.REFUSED, "cannot be reached"),
            (Fault.UNFORMATTED, "unreadable reply: no line"),
            (Fault.EMPTY, "empty: empty reply"),
            (Fault.NEVER, "timeout: no answer within 0.2 s"),
        ],
    )
    def test_an_agent_that_fails_is_a_reason_and_an_exit_code(
        self, recipe: Recipe, server: ChatServer, fault: Fault, reason: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        path = recipe(verify={"base_url": server.url(fault)}, timeout_s=0.2 if fault is Fault.NEVER else 20.0)
        result = run_cli("agents", "check", path, "agents.retries=0")
        assert result.exit_code == 1
        rows = {
            name: line
            for line in result.output.splitlines()
            for name in ("verify", "knowledge")
            if name in line
        }
        assert reason in rows["verify"] and "ok" in rows["knowledge"]
        assert "3 of 3 failed" in result.output

    def test_scripted_agents_are_checked_too(self, tmp_path: Path) -> None:
        assert "ok" in succeed("agents", "check", counting_recipe(tmp_path)).output
        result = run_cli("agents", "check", counting_recipe(tmp_path), "agents.failure_rate=1.0")
        assert result.exit_code == 1 and "scripted failure" in result.output

    def test_questions_are_about_the_first_rows_of_the_users_own_file(
        self, recipe: Recipe, server: ChatServer, tmp_path: Path
    ) -> None:
        rows = [{"problem": f"How many legs have {n} stools?", "answer": 3 * n} for n in range(2, 8)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = [f"task.train_file={tmp_path / 'rows.jsonl'}", "task.name=jsonl"]
        succeed("agents", "check", recipe(), *own, "agents.knowledge.context=request")
        assert len(server.asked) == 9
        for n in (2, 3, 4):  # three tries, three rows; who sees no problem finds it in the request
            assert sum(f"How many legs have {n} stools?" in asked.user for asked in server.asked) == 3
        server.forget()
        run_cli("train", recipe(), *own, "train.steps=1", "rollout.max_prompt_tokens=64")
        assert [asked for asked in server.asked[:3] if "2 stools" not in asked.user] == []

    def test_silence_about_one_row_is_no_failure_and_about_all_it_is(
        self, recipe: Recipe, server: ChatServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.says = lambda asked: "FACT: NONE" if len(server.asked) == 1 else "FACT: Dogs have 4 legs."
        try:
            only = ["agents.enabled=['knowledge']", "--tries", "1"]
            assert "ok" in succeed("agents", "check", recipe(), *only).output and len(server.asked) == 2
            server.says = lambda asked: "FACT: NONE"
            result = run_cli("agents", "check", recipe(), *only)
            assert result.exit_code == 1 and "knowledge: empty: empty reply" in result.output
            assert "agents.knowledge: empty" in refused(recipe(), "agents.enabled=['knowledge']")
        finally:
            server.says = None

    def test_rows_that_cannot_be_read_are_said_and_the_agents_asked_all_the_same(
        self, recipe: Recipe, server: ChatServer
    ) -> None:
        lost = ["task.name=jsonl", "task.train_file=nowhere.jsonl"]
        output = succeed("agents", "check", recipe(), *lost).output
        assert "asked about a made-up problem" in output and "nowhere.jsonl" in output
        assert all("60 km" in asked.user for asked in server.asked)

    @pytest.mark.parametrize(
        "task", ["leg_counting", "leg_counting_long", "two_digit_products", "elements", "rules"]
    )
    def test_each_packaged_oracle_has_words_for_the_question_of_its_task(
        self, tmp_path: Path, task: str
    ) -> None:
        enabled = {"elements": ["knowledge"], "rules": ["reasoning"]}.get(task)
        asked = [f"agents.enabled={enabled}"] if enabled else []
        output = succeed("agents", "check", counting_recipe(tmp_path), f"task.name={task}", *asked).output
        assert output.count("3/3") == output.count(" ok ") == (1 if enabled else 3), output

    def test_agents_of_a_recipe_that_names_no_task_are_checked(
        self, server: ChatServer, tmp_path: Path
    ) -> None:
        path = tmp_path / "agents.toml"
        path.write_text(f'[agents]\nbase_url = "{server.url()}"\nmodel = "m"\n')
        assert succeed("agents", "check", path, "--tries", "1").output.count("1/1") == 3
        assert all("60 km" in asked.user for asked in server.asked)

    def test_an_oracle_without_words_is_not_ok(self, tmp_path: Path) -> None:
        path = counting_recipe(tmp_path, agents={"enabled": ["knowledge"]})
        for task, code, said in (("SAID", 0, "ok"), ("UNSAID", 0, "silent"), ("WRONG", 1, "3 of 3 failed")):
            result = run_cli("agents", "check", path, f"task.name=support.silent_oracle:{task}")
            assert result.exit_code == code and said in result.output, result.output
            assert ("has nothing to say about sums/1+1" in result.output) is (task == "UNSAID")

    def test_without_agents_there_is_nothing_to_check(self, tmp_path: Path) -> None:
        result = run_cli("agents", "check", counting_recipe(tmp_path), "agents.enabled=[]")
        assert result.exit_code == 2 and "no agent to check" in result.output


class TestRuns:
    def test_a_run_records_its_agents_and_what_they_cost_and_no_key(
        self, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KEY_OF_THE_TEST", KEY)
        output = succeed("train", recipe(api_key_env="KEY_OF_THE_TEST", verify={"temperature": 0.0})).output
        (entry,) = json.loads((tmp_path / "run" / "agents.json").read_text())
        verify = entry["agents"]["verify"]
        assert entry["from_step"] == 1 and (verify["backend"], verify["model"]) == ("remote", "m")
        assert verify["host"].startswith("127.0.0.1:") and len(verify["prompt_sha256"]) == 12
        sampling = {"temperature": 0.0, "top_p": 0.8, "max_reply_tokens": 1024, "extra_body": {}}
        assert verify["sampling"] == sampling
        rows = lines(tmp_path / "run" / "metrics.jsonl")
        rollouts = lines(tmp_path / "run" / "rollouts.jsonl")
        used = [c for r in rollouts for c in r["consultations"]]
        assert sum(c["prompt_tokens"] for c in used) == sum(row["agent_prompt_tokens"] for row in rows) > 0
        assert sum(c["cost"] for c in used) == pytest.approx(sum(row["agent_cost"] for row in rows))
        times = lines(tmp_path / "run" / "timings.jsonl")
        assert all(row["agent_cached_share"] == 0 and row["agent_cost_paid"] > 0 for row in times)
        assert KEY not in output
        files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "model.safetensors"]
        assert not [path for path in files if KEY.encode() in path.read_bytes()]

    def test_above_the_limit_of_failures_a_run_stops_with_a_summary_and_goes_on_later(
        self, recipe: Recipe, tmp_path: Path
    ) -> None:
        path = recipe(Fault.UNFORMATTED, check_at_start=False, cache=False)
        result = run_cli("train", path, "train.min_consultations_to_stop=1")
        assert result.exit_code == 3, result.output
        said = " ".join(result.output.split())
        assert "step 1:" in said and "more than train.max_failed_consultations_share = 0.5" in said
        assert "last error: unreadable reply" in said and "agent_error" in said
        assert lines(tmp_path / "run" / "metrics.jsonl") == [] and not (tmp_path / "run" / "policy").exists()
        allowed = ["train.max_failed_consultations_share=1", f"run.output={tmp_path / 'allowed'}"]
        succeed("train", path, "train.min_consultations_to_stop=1", *allowed)
        assert len(lines(tmp_path / "allowed" / "metrics.jsonl")) == 2

    def test_a_run_stops_before_the_step_that_its_money_does_not_reach_for_and_goes_on_with_more(
        self, recipe: Recipe, tmp_path: Path, server: ChatServer
    ) -> None:
        path, limit = recipe(check_at_start=False), "guards.max_agent_cost=1e-6"
        result = run_cli("train", path, limit)
        said = " ".join(result.output.split())
        assert result.exit_code == 3, result.output
        assert "step 2: consultations have cost" in said and "guards.max_agent_cost = 1e-06 in all" in said
        [first] = lines(tmp_path / "run" / "metrics.jsonl")
        assert first["agent_cost"] > 1e-6
        asked = len(server.asked)
        assert (
            run_cli("train", path, limit).exit_code == 3
            and len(lines(tmp_path / "run" / "metrics.jsonl")) == 1
        )
        assert len(server.asked) <= asked + 1  # of the self-test, which no run is without
        succeed("train", path, "guards.max_agent_cost=9", "--allow-change", "guards.max_agent_cost")
        assert [row["step"] for row in lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]

    def test_few_consultations_do_not_stop_a_run(self, recipe: Recipe) -> None:
        path = recipe(Fault.UNFORMATTED, check_at_start=False, cache=False)
        succeed("train", path, "train.min_consultations_to_stop=10000", "train.steps=1")

    def test_ctrl_c_while_an_agent_hangs_leaves_a_run_that_goes_on(
        self, recipe: Recipe, tmp_path: Path, server: ChatServer
    ) -> None:
        path = recipe(check_at_start=False, timeout_s=300.0)
        # The self-test of a new process would hang too: the agents turn dead after the first step.
        process = start_cli("train", path, "train.steps=200", f"run.output={tmp_path / 'run'}")
        try:
            wait_until(
                lambda: len(lines(tmp_path / "run" / "metrics.jsonl")) >= 1 or process.poll() is not None
            )
            server.latency_s = 300.0
            before = len(server.asked)
            wait_until(lambda: len(server.asked) > before or process.poll() is not None)
            time.sleep(0.3)
            assert process.poll() is None
            begun = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(timeout=60) == 130
            assert time.monotonic() - begun < 5
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        server.latency_s = 0.0
        done = len(lines(tmp_path / "run" / "metrics.jsonl"))
        assert done >= 1
        settings = ["train.steps=200", f"run.output={tmp_path / 'run'}"]
        again = start_cli("train", path, *settings)
        try:
            wait_until(
                lambda: len(lines(tmp_path / "run" / "metrics.jsonl")) > done or again.poll() is not None
            )
            assert again.poll() is None
        finally:
            again.kill()
            again.wait()

    def test_a_killed_run_that_goes_on_asks_only_what_it_had_not_asked(
        self, recipe: Recipe, tmp_path: Path, server: ChatServer
    ) -> None:
        path, long = recipe(check_at_start=False), ["train.steps=4", "train.checkpoint_every_steps=4"]
        process = start_cli("train", path, *long)
        try:
            run = tmp_path / "run"
            wait_until(lambda: len(lines(run / "metrics.jsonl")) >= 2 or process.poll() is not None)
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
        assert 2 <= len(lines(run / "metrics.jsonl")) < 4
        asked = [json.dumps(a.body) for a in server.asked]
        succeed("train", path, *long)
        later = [json.dumps(a.body) for a in server.asked[len(asked) :]]
        lost = len(set(asked) & set(later))
        assert lost <= 16, "what was under way when it was killed is asked again, and nothing else"
        times = lines(run / "timings.jsonl")
        assert times[0]["agent_cached_share"] == 1.0 and times[0]["agent_cost_paid"] == 0.0
        server.forget()
        succeed("train", path, *long, "--no-cache", f"run.output={tmp_path / 'whole'}")
        assert len(server.asked) > 0
        # Replies that come when they come change which rows decode together, hence a float's last digits.
        kept = ("rollout", "verdict", "response", "consultations")
        rollouts = [lines(folder / "rollouts.jsonl") for folder in (run, tmp_path / "whole")]
        first = [[{k: r[k] for k in kept} for r in found if r["step"] == 1] for found in rollouts]
        assert first[0] == first[1] and first[0]
        costs = [lines(folder / "metrics.jsonl")[0]["agent_cost"] for folder in (run, tmp_path / "whole")]
        assert costs[0] == costs[1] > 0, "a step costs what it costs, whether it was paid for once or twice"

    @pytest.mark.parametrize("backend", ["dead", "garbage", "hostile"])
    def test_a_rehearsal_with_agents_that_misbehave_ends_well(
        self, recipe: Recipe, tmp_path: Path, backend: str
    ) -> None:
        more = ["train.max_failed_consultations_share=1", "agents.timeout_s=0.2", "train.steps=1"]
        succeed("train", recipe(), f"agents.backend={backend}", *more)
        (row,) = lines(tmp_path / "run" / "metrics.jsonl")
        assert row["ungraded_share"] == 0
        if backend == "dead":
            assert row["outcomes/timeout"] > 0 == row["outcomes/answered"]


def lines(path: Path) -> list[dict]:
    """Return the whole lines of a file that may be written to."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
