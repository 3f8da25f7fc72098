"""Agents that are tools of an MCP server: a real server by the official SDK, over stdio and over HTTP."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from aipo.agents.backends import AgentSetupError
from aipo.agents.base import Agent, AgentFailure, AgentQuery
from aipo.assembly.agents import build_agents
from aipo.config.loader import load_settings
from aipo.config.problems import SettingsError
from aipo.core.types import ConsultOutcome
from aipo.rollout.asking import Answer, ask
from support import mcp_server_path

MCP = pytest.mark.skipif(find_spec("mcp") is None, reason="the package mcp is not installed")
STDIO = (
    f'agents.knowledge.mcp.command="{sys.executable}"',
    f'agents.knowledge.mcp.args=["{mcp_server_path()}"]',
)
HERE = "agents.knowledge.mcp"


def agents_of(*overrides: str, enabled: Sequence[str] = ("knowledge",)) -> Any:
    listed = ", ".join(f'"{name}"' for name in enabled)
    common = [f"agents.enabled=[{listed}]", "agents.knowledge.backend=mcp", "agents.retry_wait_s=0.05"]
    return build_agents(load_settings(None, [*common, *overrides]), None, use_cache=False)


def agent_of(*overrides: str) -> Agent:
    found: Agent = agents_of(*overrides).agents["knowledge"]
    return found


def query(request: str, rollout: str = "so far", problem: str = "a problem") -> AgentQuery:
    return AgentQuery(problem=problem, rollout=rollout, request=request, seed=0)


def asked(agent: Agent, *requests: str, timeout_s: float = 30.0) -> list[Answer]:
    """Ask one after the other, in one event loop."""

    async def all_of_them() -> list[Answer]:
        return [await ask(agent, query(request), timeout_s) for request in requests]

    return asyncio.run(all_of_them())


def starts(folder: Path) -> str:
    (folder / "starts").touch()
    return f"{HERE}.env.STARTS={folder / 'starts'}"


def started(folder: Path) -> int:
    return len((folder / "starts").read_text().splitlines())


@MCP
class TestStdio:
    def test_a_tool_answers_and_its_own_error_is_a_reply(self, tmp_path: Path) -> None:
        answers = asked(agent_of(*STDIO, f"{HERE}.tool=legs", starts(tmp_path)), "a spider?", "a cow?", "dog")
        assert [a.outcome for a in answers] == [ConsultOutcome.ANSWERED] * 3
        texts = [a.reply.text for a in answers if a.reply]
        assert texts[0] == "a spider has 8 legs" and "Error" in texts[1] and texts[2] == "a dog has 4 legs"
        assert started(tmp_path) == 1

    def test_arguments_are_found_or_named(self) -> None:
        (unnamed,) = asked(agent_of(*STDIO, f"{HERE}.tool=between"), "x")
        assert unnamed.failure is AgentFailure.REFUSED
        assert "name the argument that takes the request in agents.knowledge.mcp.argument" in unnamed.detail
        named = (f"{HERE}.argument=text", f'{HERE}.arguments={{left="<", right=">"}}')
        (answer,) = asked(agent_of(*STDIO, f"{HERE}.tool=between", *named), "x")
        assert answer.reply and answer.reply.text == "<x>"
        (answer,) = asked(agent_of(*STDIO, f"{HERE}.tool=between", named[1]), "x")
        assert answer.reply and answer.reply.text == "<x>"  # the one that is left

    def test_without_a_request_it_sees_what_its_context_shows(self) -> None:
        for context, seen in (("problem+rollout+request", "so far"), ("problem+request", "a problem")):
            named = (f"{HERE}.tool=between", f'{HERE}.arguments={{left="<", right=">"}}')
            (answer,) = asked(agent_of(*STDIO, *named, f"agents.context={context}"), "")
            assert answer.reply and answer.reply.text == f"<{seen}>"

    def test_a_tool_that_is_not_there_is_refused_and_the_others_are_named(self) -> None:
        (answer,) = asked(agent_of(*STDIO, f"{HERE}.tool=search"), "x")
        assert answer.outcome is ConsultOutcome.AGENT_ERROR and answer.failure is AgentFailure.REFUSED
        assert "has no tool 'search'; it has between, die" in answer.detail

    def test_a_server_that_dies_is_started_again(self, tmp_path: Path) -> None:
        agent = agent_of(*STDIO, f"{HERE}.tool=die", starts(tmp_path))
        (answer,) = asked(agent, "x")
        assert answer.reply and answer.reply.text == "back again" and started(tmp_path) == 2

    def test_without_attempts_its_death_is_a_failure_with_its_last_words(self, tmp_path: Path) -> None:
        agent = agent_of(*STDIO, f"{HERE}.tool=die", starts(tmp_path), "agents.retries=0")
        gone, back = asked(agent, "x", "x")
        assert gone.outcome is ConsultOutcome.AGENT_ERROR and gone.failure is AgentFailure.UNREACHABLE
        assert "the server fell over" in gone.detail
        assert back.outcome is ConsultOutcome.ANSWERED

    def test_a_program_that_is_not_there_is_a_failure(self) -> None:
        agent = agent_of(f"{HERE}.command=/no/such/program", f"{HERE}.tool=legs", "agents.retries=1")
        (answer,) = asked(agent, "x")
        assert answer.failure is AgentFailure.UNREACHABLE and "(2 attempts): cannot connect" in answer.detail

    def test_a_tool_that_hangs_is_a_timeout_and_the_next_question_gets_another_server(
        self, tmp_path: Path
    ) -> None:
        agent = agent_of(*STDIO, f"{HERE}.tool=hang", starts(tmp_path), "agents.timeout_s=8")
        begun = time.monotonic()
        answers = asked(agent, "x", "y", timeout_s=8)
        assert [a.outcome for a in answers] == [ConsultOutcome.TIMEOUT] * 2
        assert started(tmp_path) == 2 and time.monotonic() - begun < 40

    def test_results_without_text_are_json(self) -> None:
        (answer,) = asked(agent_of(*STDIO, f"{HERE}.tool=numbers"), "x")
        assert answer.reply and '"spider": 8' in answer.reply.text

    def test_a_long_reply_is_a_failure(self) -> None:
        wide = (f"{HERE}.tool=between", f'{HERE}.arguments={{left="{"x" * 2000}", right=""}}')
        (answer,) = asked(agent_of(*STDIO, *wide, "agents.max_reply_bytes=1024"), "x")
        assert answer.failure is AgentFailure.UNREACHABLE and "max_reply_bytes = 1024" in answer.detail

    def test_the_environment_is_handed_on_by_name_and_not_recorded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SEARCH_KEY", "hush")
        monkeypatch.setenv("OTHER_KEY", "never")
        made = agents_of(*STDIO, f"{HERE}.tool=secret", f'{HERE}.env_from=["SEARCH_KEY"]')
        known, other = asked(made.agents["knowledge"], "SEARCH_KEY", "OTHER_KEY")
        assert known.reply and known.reply.text == "hush" and other.reply and other.reply.text == "none"
        assert "hush" not in str(made.record) and "SEARCH_KEY" in str(made.record)

    def test_agents_of_one_server_share_it_and_many_ask_at_once(self, tmp_path: Path) -> None:
        own = [
            f"agents.verify.{line.removeprefix('agents.knowledge.')}" for line in (*STDIO, starts(tmp_path))
        ]
        made = agents_of(
            *STDIO,
            starts(tmp_path),
            f"{HERE}.tool=legs",
            *own,
            "agents.verify.backend=mcp",
            "agents.verify.mcp.tool=numbers",
            "agents.concurrency=9",
            "agents.knowledge.concurrency=3",
            enabled=("verify", "knowledge"),
        ).agents

        async def many() -> list[Answer]:
            return await asyncio.gather(
                *(ask(made[n], query("dog"), 30) for n in ("verify", "knowledge") for _ in range(20))
            )

        servers = {id(agent.server): agent.server for agent in made.values()}  # type: ignore[attr-defined]
        assert [server.concurrency for server in servers.values()] == [3]  # the lowest, whoever is made first
        answers = asyncio.run(many())
        assert {a.outcome for a in answers} == {ConsultOutcome.ANSWERED} and started(tmp_path) == 1
        assert asyncio.run(many())[0].outcome is ConsultOutcome.ANSWERED  # in another event loop


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(port: int) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, str(mcp_server_path()), str(port)], stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as door:
                if door.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


@MCP
def test_over_http_a_server_is_asked_and_found_again_after_it_was_away() -> None:
    port = free_port()
    agent = agent_of(
        f"{HERE}.url=http://127.0.0.1:{port}/mcp",
        f"{HERE}.tool=legs",
        "agents.retries=1",
        "agents.timeout_s=20",
    )

    async def through_a_restart() -> list[Answer]:
        found = []
        with serving(port):
            found.append(await ask(agent, query("spider"), 20))
        found.append(await ask(agent, query("spider"), 20))
        with serving(port):
            found.append(await ask(agent, query("dog"), 20))
        return found

    here, away, again = asyncio.run(through_a_restart())
    assert here.reply and here.reply.text == "a spider has 8 legs"
    assert away.outcome is ConsultOutcome.AGENT_ERROR and away.failure is AgentFailure.UNREACHABLE, away
    assert again.reply and again.reply.text == "a dog has 4 legs", again


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), "needs a server; set agents.knowledge.mcp.command"),
        (STDIO, "needs a tool; set agents.knowledge.mcp.tool"),
        ((*STDIO, f"{HERE}.tool=x", f'{HERE}.env_from=["NO_SUCH_VARIABLE"]'), "is not set; export it first"),
    ],
)
def test_what_is_missing_is_named(overrides: Sequence[str], said: str) -> None:
    with pytest.raises(AgentSetupError) as caught:
        agents_of(*overrides)
    assert said in str(caught.value)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aipo.agents.mcp_tool.is_installed", lambda: False)
    with pytest.raises(AgentSetupError, match=r"pip install 'aipo\[mcp\]'"):
        agents_of(*STDIO, f"{HERE}.tool=legs")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (f"{HERE}.url=http://a:b@c/mcp", "holds credentials"),
        (f"{HERE}.url=localhost:8000", "is no http(s) address"),
        (f'{HERE}.env_from=["sk-123 456"]', "must be names of environment variables"),
        (f"{HERE}.tol=x", "did you mean"),
    ],
)
def test_wrong_settings_are_refused(override: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, [override])
    assert said in str(caught.value)
    with pytest.raises(SettingsError, match="are two servers"):
        load_settings(None, [*STDIO, f"{HERE}.url=http://localhost:1/mcp"])
