"""An agent with a tool of its own: it runs the program of a request in the grader's sandbox.

Whatever the program does is a reply, for the policy wrote it and is to read what came of it; only a sandbox
that does not work is a failure.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache

from aipo.agents.base import AgentError, AgentQuery, AgentReply
from aipo.agents.prompting import prompt_of
from aipo.agents.replies import Reading
from aipo.agents.spec import AgentSpec
from aipo.config.agents import AgentFields
from aipo.grading.code import extract_code
from aipo.grading.sandbox.base import Limits, Outcome, Program, Run, Sandbox
from aipo.grading.sandbox.detect import open_sandbox

LIMITS = Limits(cpu_s=4.0, wall_s=6.0, memory_mb=512, output_bytes=1 << 16)
"""Less than a consultation's deadline, and more than a line of arithmetic takes."""
_SHELL = """
import ast
source = {source!r}
names = {{"__name__": "__main__"}}
try:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "program", "exec"), names)
    value = eval(compile(ast.Expression(last.value), "program", "eval"), names) if last else None
    if value is not None:
        print(value)
except Exception as error:
    print(type(error).__name__ + ": " + str(error))
"""
"""Prints the value of a last expression, as an interactive Python does, and an error in one line."""
_ENDS = {
    Outcome.CPU_LIMIT: "The program took more than {limits.cpu_s:g} s and was stopped.",
    Outcome.WALL_LIMIT: "The program slept more than {limits.wall_s:g} s and was stopped.",
    Outcome.OUTPUT_LIMIT: "The program printed more than {limits.output_bytes} bytes and was stopped.",
    Outcome.SIGNALLED: "The program crashed.",
}


@dataclass(frozen=True, kw_only=True)
class PythonAgent:
    """`aipo.agents.base.Agent` that runs programs, at most `workers` at a time."""

    name: str
    sandbox: Sandbox
    limits: Limits = LIMITS
    workers: int = 4
    _threads: ThreadPoolExecutor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_threads", ThreadPoolExecutor(self.workers, "python-agent"))

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return what the request's program prints: its last fenced block, else all of it.

        Without a request, the last fenced block of what is written so far. Raises `AgentError` for a sandbox
        that does not work.
        """
        source = extract_code(query.request) or query.request.strip() or extract_code(query.rollout)
        if not source:
            return AgentReply(text="")
        program = Program(_SHELL.format(source=source))
        loop = asyncio.get_running_loop()
        run = await loop.run_in_executor(self._threads, self.sandbox.run, program, self.limits)
        if run.outcome is Outcome.SANDBOX_ERROR:
            raise AgentError(f"sandbox: {run.detail}")
        return AgentReply(text=_said(run, self.limits))


@cache
def _sandbox() -> Sandbox:
    """Return this machine's sandbox, looked for once: that takes a probe in each."""
    return open_sandbox()


def run(spec: AgentSpec, fields: AgentFields) -> PythonAgent:
    """Return the agent for any name: `agents.NAME.backend = "aipo.assembly.python_agent:run"`.

    Raises `SandboxError` where this machine has no sandbox.
    """
    return PythonAgent(name=spec.name, sandbox=_sandbox(), workers=min(fields.concurrency, 8))


PYTHON = AgentSpec(
    name="python",
    tag="python",
    offer="- $open a short Python program $close runs it, and tells you what it prints.",
    prompt=prompt_of(
        "# aipo Python agent prompt, version 1\nYou are a Python interpreter. Reply with what the program "
        "prints and nothing else.\n---\n@request $request\n"
    ),
    reader=Reading,
    canary="print(6 * 7)",
    rehearsal="print(2 + 2)",
    colour=("#6a4c93", "#c3a6e6"),
    must_be_asked=True,
)
"""An agent of that name: `agents.enabled = ["verify", "aipo.assembly.python_agent:PYTHON"]`."""


def _said(run: Run, limits: Limits) -> str:
    printed = run.stdout.decode("utf-8", errors="replace").strip()
    ended = _ENDS[run.outcome].format(limits=limits) if run.outcome in _ENDS else ""
    return "\n".join(filter(None, [printed, ended])) or "The program printed nothing."
