"""Agents with a tool of their own: programs in the grader's sandbox, and a calculator of a user's own."""

import asyncio
import re
import time
from pathlib import Path

import pytest

from aipo.agents.base import AgentError
from aipo.agents.named import AGENTS
from aipo.assembly.agents import build_agents
from aipo.assembly.python_agent import PythonAgent
from aipo.config.loader import load_settings
from aipo.core.types import ConsultOutcome
from aipo.grading.sandbox.base import Backend, Limits, Outcome, Program, Run, SandboxError
from aipo.grading.sandbox.detect import open_sandbox
from aipo.rollout.asking import Answer, ask
from support.calculator import Calculator
from support.python_agents import query_of

DOCS = Path(__file__).parents[3] / "docs" / "agents.md"


@pytest.fixture(scope="module")
def python() -> PythonAgent:
    """Return the agent on this machine's sandbox."""
    try:
        sandbox = open_sandbox()
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")
    limits = Limits(cpu_s=1.0, wall_s=1.0, memory_mb=256, output_bytes=2000)
    return PythonAgent(name="verify", sandbox=sandbox, limits=limits)


def asked(agent: object, request: str, rollout: str = "") -> Answer:
    return asyncio.run(ask(agent, query_of(request, rollout), 30))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_text", "said"),
    [
        ("print(6 * 7)", "42"),
        ("x = 6\nx * 7", "42"),
        ("Please run\n```python\nfor i in range(3):\n    print(i)\n```\n", "0\n1\n2"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("so is it 8?", "SyntaxError"),
        ("x = 1", "The program printed nothing."),
        ("while True: pass", "took more than 1 s"),
        ("import time; print(1, flush=True); time.sleep(9)", "1\nThe program slept more than 1 s"),
        ("while True: print('x' * 99)", "printed more than 2000 bytes"),
        ("import os; os.abort()", "The program crashed."),
        ("open('/etc/hostname').read()", "Error"),
        ("import socket; socket.create_connection(('127.0.0.1', 1))", "Error"),
        ("'\\ud800'", ""),
    ],
)
def test_what_a_program_does_is_a_reply(python: PythonAgent, request_text: str, said: str) -> None:
    answer = asked(python, request_text)
    assert answer.outcome is ConsultOutcome.ANSWERED and answer.reply and said in answer.reply.text, answer


def test_without_a_request_the_last_program_of_the_rollout_runs(python: PythonAgent) -> None:
    answer = asked(python, "", "First\n```python\nprint(1)\n```\nthen\n```\nprint(2)\n```\n")
    assert answer.reply and answer.reply.text == "2"
    assert asked(python, "", "no program").outcome is ConsultOutcome.EMPTY


def test_many_run_at_once_and_the_event_loop_goes_on(python: PythonAgent) -> None:
    async def beside() -> tuple[list[Answer], float]:
        programs = [ask(python, query_of("import time; time.sleep(0.5); print(1)"), 30) for _ in range(8)]
        running = asyncio.gather(*programs)
        longest, before = 0.0, time.monotonic()
        while not running.done():
            await asyncio.sleep(0.01)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()
        return list(await running), longest

    answers, longest = asyncio.run(beside())
    assert all(a.reply and a.reply.text == "1" for a in answers) and longest < 0.4


class Broken:
    """A sandbox that does not work."""

    backend, description = Backend.LANDLOCK, "broken"

    def run(self, program: Program, limits: Limits) -> Run:
        return Run(outcome=Outcome.SANDBOX_ERROR, detail="no room on the device")


def test_a_sandbox_that_does_not_work_is_a_failure() -> None:
    with pytest.raises(AgentError, match="sandbox: no room on the device"):
        asyncio.run(PythonAgent(name="verify", sandbox=Broken()).answer(query_of("1")))


def test_it_is_named_in_a_recipe_for_verify_or_as_an_agent_of_its_own(python: PythonAgent) -> None:
    backend = "aipo.assembly.python_agent:run"
    own = "aipo.assembly.python_agent:PYTHON"
    enabled = f'agents.enabled=["verify", "{own}"]'
    made = build_agents(load_settings(None, [enabled, f"agents.backend={backend}"]), None)
    assert sorted(made.agents) == ["python", "verify"]
    assert made.record["verify"] == {"backend": backend, "type": "PythonAgent"}
    answer = asked(made.agents["python"], AGENTS[own].canary)
    assert answer.reply and answer.reply.text == "42"


def test_a_calculator_of_ones_own() -> None:
    agent = Calculator("knowledge")
    for request, said in {
        "(2 + 3) * 4": "20",
        "1/3 + 1/6": "1/2",
        "0.1 + 0.2": "3/10",
        "1/0": "This cannot be worked out",
        "__import__('os')": "only numbers",
        "9**9**9**9": "only numbers",
        "(" * 199: "This cannot be worked out",
    }.items():
        answer = asked(agent, request)
        assert answer.outcome is ConsultOutcome.ANSWERED and answer.reply and said in answer.reply.text
    settings = load_settings(
        None, ['agents.enabled=["knowledge"]', "agents.knowledge.backend=support.calculator:make"]
    )
    assert isinstance(build_agents(settings, None).agents["knowledge"], Calculator)


def test_the_page_shows_the_calculator_as_it_is_tested() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    source = (Path(__file__).parents[2] / "support" / "calculator.py").read_text()
    assert any(block.strip() and block.strip() in source for block in blocks if "class Calculator" in block)
