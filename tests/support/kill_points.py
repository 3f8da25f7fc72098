"""Runs `aipo train` in forked children that kill themselves at a chosen side effect: no hook in the package.

`Zygote` starts this file as a process that has imported everything, and forks from it for each run, which
saves the seconds that importing torch takes. In the child every function of `SIDE_EFFECTS` is wrapped: each
call is an event, named by the function and by what it is called on, and by `writer: ` where it happens in the
thread that writes a checkpoint. A run can be traced, or killed by SIGKILL just before its n-th event of a
name; "after an event" is before the next one. The thread can be held at an event until another one comes.
"""

import asyncio
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

SIDE_EFFECTS = (
    "aipo.training.experience:Experience.sample_step",
    "aipo.training.update:Updater.apply",
    "aipo.training.update:Updater._step",
    "aipo.training.journal:Journal.append",
    "aipo.training.journal:Journal.rewind",
    "aipo.training.journal:Journal.sync",
    "aipo.training.changes:Changes.hold_from",
    "aipo.training.checkpoint:Checkpoints.save",
    "aipo.training.checkpoint:Checkpoints._write",
    "aipo.training.loop:save_policy",
    "aipo.assembly.during:save_policy",
    "aipo.assembly.evaluation:append_record",
    "aipo.assembly.run:record_agents",
    "transformers:PreTrainedModel.save_pretrained",
    "torch:save",
    "pathlib:Path.write_text",
    "pathlib:Path.rename",
    "pathlib:Path.replace",
    "pathlib:Path.unlink",
    "shutil:rmtree",
    "os:truncate",
)
TIMEOUT_S = 120
_SEEN: Counter[str] = Counter()
"""The events of this child so far."""


@dataclass(frozen=True)
class Ran:
    """How a run ended."""

    status: int
    """Exit code, or minus the signal that ended it."""
    output: str


class Zygote:
    """Runs one child after another."""

    def __init__(self) -> None:
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join(paths),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, output: Path, *arguments: str | Path, **how: Any) -> Ran:
        """Run `aipo train`; `how`: kill = [event, n], trace = file, agents = 'drawing', 'deaf' or 'blocking',
        send = [signal, event, n], hold = [event, n, until_event, m], fail_writes, written,
        file_limit_bytes, each described where it is read below."""
        job = {"arguments": [str(a) for a in arguments], "log": str(output), **how}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        status = json.loads(self._process.stdout.readline())["status"]
        return Ran(status, output.read_text(errors="replace"))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def _serve() -> None:
    import aipo.cli.train  # noqa: F401  # torch and transformers are in before the first fork
    from aipo.tasks.base import Split
    from aipo.tasks.cpu.leg_counting.task import LegCountingTask

    LegCountingTask().problems(Split.TRAIN)  # drawn once, kept for all children

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(job)
        print(json.dumps({"status": _waited(child)}), file=answers, flush=True)


def _waited(child: int) -> int:
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -999


def _become(job: dict[str, Any]) -> None:
    """Turn this child into `aipo train`; never returns."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 70
    try:
        status = _run(job)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        if isinstance(error, SystemExit):
            status = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(job: dict[str, Any]) -> int:
    from aipo.cli import console
    from aipo.cli.main import app

    console.console.file, console.errors.file = sys.stdout, sys.stderr
    if "file_limit_bytes" in job:  # no file may grow beyond it: what a full disk does to a write
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit_bytes"],) * 2)
    _wrap_side_effects(job)
    if "agents" in job:
        _give_agents({"drawing": _drawing, "deaf": _deaf, "blocking": _blocking}[job["agents"]])
    try:
        return int(app(job["arguments"], standalone_mode=False) or 0)
    except SystemExit as exit_:
        return int(exit_.code or 0)


def _wrap_side_effects(job: dict[str, Any]) -> None:
    seen = _SEEN
    kill, send, hold = job.get("kill"), job.get("send"), job.get("hold")

    def happens(name: str) -> None:
        if threading.current_thread().name.startswith("writer"):
            name = f"writer: {name}"
        seen[name] += 1
        if "trace" in job:
            with open(job["trace"], "a") as trace:
                trace.write(json.dumps([name, seen[name]]) + "\n")
        if kill == [name, seen[name]]:
            while job.get("written") and any(t.name.startswith("writer") for t in threading.enumerate()):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        if hold and hold[:2] == [name, seen[name]]:
            while seen[hold[2]] < hold[3]:
                time.sleep(0.01)
        if name.startswith("writer: Checkpoints._write") and seen[name] in job.get("fail_writes", ()):
            raise OSError("the disk has a bad day")
        if send and send[1:] == [name, seen[name]]:
            os.kill(os.getpid(), send[0])

    for target in SIDE_EFFECTS:
        module, _, path = target.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, last = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, last, _telling(getattr(owner, last), path, happens))


def _telling(function: Callable[..., Any], path: str, happens: Callable[[str], None]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        happens(f"{path}{_on_what(arguments)}")
        return function(*arguments, **named)

    return wrapper


def _on_what(arguments: tuple[Any, ...]) -> str:
    """The file that an event is about, numbers taken out."""
    for argument in arguments[:2]:
        if isinstance(argument, str | Path):
            name = Path(argument).name
            if name.startswith("tmp"):
                return " tmp"
            return f" {''.join(c for c in name if not c.isdigit())}"
    return ""


async def _drawing() -> str:
    """What an agent of a user's own says that draws from the generators of the process."""
    import numpy
    import torch

    drawn = (random.randrange(8), int(numpy.random.randint(8)), int(torch.randint(8, (1,))))
    return " ".join(str(number) for number in drawn)


async def _deaf() -> str:
    """An agent that hangs past its deadline: it does not let itself be cancelled."""
    while _SEEN["Experience.sample_step"]:  # not in the self-test
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue
    return ""


async def _blocking() -> str:
    """An agent that stops the event loop, as code that is not made for asyncio does."""
    if _SEEN["Experience.sample_step"]:
        time.sleep(3600)
    return ""


def _give_agents(said: Callable[[], Awaitable[str]]) -> None:
    from aipo.agents.base import AgentQuery, AgentReply
    from aipo.cli import train as verb
    from aipo.core.types import PAPER_AGENTS

    class Own:
        def __init__(self, name: str) -> None:
            self.name = name

        async def answer(self, query: AgentQuery) -> AgentReply:
            return AgentReply(text=await said())

    original = verb.train_run
    own = {name: Own(name) for name in PAPER_AGENTS}
    verb.train_run = lambda *given, **named: original(*given, agents=own, **named)  # type: ignore[assignment]


if __name__ == "__main__":
    _serve()
