"""Libraries of others in a process of their own: one JSON line in, one JSON line out.

`python outside_worker.py KIND CPU_S [JSON]` imports the standard library and the library that it serves,
nothing of ours: the interpreter may belong to an environment that this package is not installed in. What the
library prints goes to standard error. A request that uses more than `CPU_S` of CPU time ends the process
(SIGPROF); 0: there is no limit. The JSON says what to load before the process is ready.

A reply holds `error` where the request could not be met: the exception's name and words.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

ERROR_CHARACTERS = 300
GYM_MEMORY_BYTES = 4 << 30
"""Of address space: a scorer reads what a policy wrote. Environments of verifiers may map far more."""
Message = dict[str, Any]
Handler = Callable[[Mapping[str, Any]], Message]


class ReasoningGym:
    """Draws items of a data set of reasoning-gym, and scores answers with its own scorer."""

    def __init__(self, what: Mapping[str, Any]) -> None:
        import reasoning_gym

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = GYM_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(GYM_MEMORY_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        self._gym = reasoning_gym
        self._drawn: tuple[str, Any] = ("", None)

    def ready(self) -> Message:
        """Say which library is there."""
        from importlib.metadata import version

        datasets = sorted(self._gym.factory.DATASETS)
        return {"reasoning-gym": version("reasoning-gym"), "datasets": datasets}

    def answer(self, request: Mapping[str, Any]) -> Message:
        """Draw (`dataset`, `parameters`, `seed`, `size`, `index`) or score (`dataset`, `entry`, `answer`)."""
        if request["do"] == "draw":
            entry = self._data(request)[request["index"]]
            kept = {name: entry[name] for name in ("question", "answer", "metadata")}
            kept = json.loads(_line(kept))  # what is scored later is what is read back from the line
            return {"entry": kept, "gold_score": self._gold_score(request["dataset"], kept)}
        try:
            return {"score": self._score(request["dataset"], request["answer"], request["entry"])}
        except Exception as error:  # a scorer's bug, or what an answer brings about
            gold = self._gold_score(request["dataset"], request["entry"])
            return {"raised": _said(error), "gold_score": gold}

    def _data(self, request: Mapping[str, Any]) -> Any:
        key = _line({name: request[name] for name in ("dataset", "parameters", "seed", "size")})
        if self._drawn[0] != key:
            how = {"seed": request["seed"], "size": request["size"], **request["parameters"]}
            self._drawn = key, self._gym.create_dataset(request["dataset"], **how)
        return self._drawn[1]

    def _score(self, dataset: str, answer: str, entry: Mapping[str, Any]) -> float:
        # A copy: some scorers write into the entry's metadata.
        return float(self._gym.get_score_answer_fn(dataset)(answer, json.loads(_line(entry))))

    def _gold_score(self, dataset: str, entry: Mapping[str, Any]) -> float:
        """Return the score of the item's own answer; 0 where there is none, or where it raises."""
        gold = entry["answer"]
        try:
            return self._score(dataset, str(gold).strip(), entry) if gold is not None else 0.0
        except Exception:  # the item cannot be used, and that is what 0 says
            return 0.0


class Verifiers:
    """The rows and the rubric of an environment with a single turn, of the first API of verifiers."""

    def __init__(self, what: Mapping[str, Any]) -> None:
        """Load `what["environment"]` with `what["arguments"]`."""
        import asyncio

        import verifiers

        if not hasattr(verifiers, "load_environment"):
            raise ImportError(f"verifiers {verifiers.__version__} has no load_environment, as 0.1 has")
        self._vf = verifiers
        self._loop = asyncio.new_event_loop()
        self._raised: list[str] = []
        """What reward functions have raised; the library makes 0 of it."""
        self._environment = self._loaded(what["environment"], what["arguments"])

    def ready(self) -> Message:
        """Say which library is there."""
        return {"verifiers": self._vf.__version__}

    def answer(self, request: Mapping[str, Any]) -> Message:
        """Return rows (`split`, `start`, `count`), or score a rollout (`row`, `completion`)."""
        if request["do"] == "rows":
            rows = self._rows(request["split"])
            chosen = range(request["start"], min(len(rows), request["start"] + request["count"]))
            return {"rows": [dict(rows[index]) for index in chosen], "total": len(rows)}
        self._raised.clear()
        state = self._loop.run_until_complete(self._scored(request["row"], request["completion"]))
        if self._raised:
            return {"raised": self._raised[0]}
        return {"reward": state["reward"], "metrics": dict(state["metrics"] or {})}

    def _loaded(self, name: str, arguments: Mapping[str, Any]) -> Any:
        environment = self._vf.load_environment(name, **arguments)
        kind = type(environment).__name__
        if not isinstance(environment, self._vf.SingleTurnEnv):
            raise TypeError(
                f"it is a {kind}: turns of its own, tools or a group; only a SingleTurnEnv is read"
            )
        if getattr(environment, "message_type", "chat") != "chat":
            raise TypeError(f"message_type = {environment.message_type!r}: only chats are read")
        if getattr(environment, "tool_defs", None):
            raise TypeError(f"this {kind} offers tools; only one without is read")
        for rubric in _rubrics(environment.rubric):
            if getattr(rubric, "has_group_rewards", False):
                raise TypeError("its rubric scores several rollouts together; only single ones are scored")
            rubric.funcs = [self._noting(function) for function in rubric.funcs]
        return environment

    def _noting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a reward function that leaves a note where it raises."""
        import functools
        import inspect

        @functools.wraps(function)
        async def noted(*args: Any, **kwargs: Any) -> Any:
            try:
                found = function(*args, **kwargs)
                return await found if inspect.isawaitable(found) else found
            except Exception as error:
                self._raised.append(f"{getattr(function, '__name__', function)}: {_said(error)}")
                raise

        return noted

    def _rows(self, split: str) -> Any:
        if split == "train":
            return self._environment.get_dataset() if self._environment.build_dataset() is not None else []
        return self._environment.build_eval_dataset() or []

    async def _scored(self, row: Message, completion: str) -> Any:
        from verifiers.utils.message_utils import normalize_messages

        state = self._vf.State(input=row)
        state["task"] = dict(row)
        state["prompt"] = normalize_messages(row["prompt"])
        state["completion"] = normalize_messages([{"role": "assistant", "content": completion}])
        state.update(_FINISHED)
        step = {
            "prompt": state["prompt"],
            "completion": state["completion"],
            "response": None,
            "tokens": None,
        }
        state["trajectory"] = [
            {**step, "reward": None, "advantage": None, "is_truncated": False, "extras": {}}
        ]
        await self._environment.setup_state(state)
        await self._environment.rubric.score_rollout(state)
        return state


_FINISHED: Message = {
    "is_completed": True,
    "is_truncated": False,
    "stop_condition": None,
    "tool_defs": [],
    "reward": None,
    "metrics": None,
    "error": None,
}
"""Of a rollout's state when it is scored."""


def _rubrics(rubric: Any) -> list[Any]:
    """Return a rubric, and those that it consists of."""
    return [rubric, *(one for part in getattr(rubric, "rubrics", ()) for one in _rubrics(part))]


def _line(message: Mapping[str, Any]) -> str:
    return json.dumps(message, default=str)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS]


def serve(make: Callable[[], Any], cpu_s: float) -> None:
    """Answer lines until the other end closes; the first line says that the process is ready."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the library prints is no reply
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))

    def say(message: Message) -> None:
        out.write(_line(message) + "\n")
        out.flush()

    try:
        library = make()
        say({"ready": library.ready()})
    except Exception as error:  # the library is not there, or cannot be set up: the other end says so
        say({"error": _said(error)})
        return
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            reply = library.answer(json.loads(line))
        except Exception as error:
            reply = {"error": _said(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        say(reply)


KINDS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "reasoning_gym": ReasoningGym,
    "verifiers": Verifiers,
}

if __name__ == "__main__":
    kind, cpu_s, *what = sys.argv[1:]
    serve(lambda: KINDS[kind](json.loads(what[0]) if what else {}), float(cpu_s))
