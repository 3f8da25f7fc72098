"""Libraries of others in a process of their own: one JSON line in, one JSON line out.

`python outside_worker.py KIND [CPU_S]` imports the standard library and the library that it serves, nothing
of ours: the interpreter may belong to an environment that this package is not installed in. What the library
prints goes to standard error. A request that uses more than `CPU_S` of CPU time ends the process (SIGPROF).

A reply holds `error` where the request could not be met: the exception's name and words.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

MEMORY_BYTES = 4 << 30
ERROR_CHARACTERS = 300
Message = dict[str, Any]
Handler = Callable[[Mapping[str, Any]], Message]


class ReasoningGym:
    """Draws items of a data set of reasoning-gym, and scores answers with its own scorer."""

    def __init__(self) -> None:
        import reasoning_gym

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
            # What is scored later is what is read back from the line.
            return {
                "entry": kept,
                "gold_score": self._gold_score(request["dataset"], json.loads(_line(kept))),
            }
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


KINDS: Mapping[str, Callable[[], Any]] = {"reasoning_gym": ReasoningGym}

if __name__ == "__main__":
    serve(KINDS[sys.argv[1]], float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
