"""Runs to report on: one that was really trained, and folders written by hand, as hostile as need be.

`trained_run`: three updates of the tiny leg-counting policy with agents, evaluated alone; made once.
`RunWriter`: a run's folder with the records that a test asks for.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from aipo.config.loader import dump_settings, load_settings
from support.policies import counting_policy, counting_recipe, succeed

HOSTILE = {
    "script": "</script><script>window.hacked = 1; alert(1)</script>",
    "image": '<img src=x onerror="window.hacked = 2">',
    "comment": "<!-- <script> ]]> -->",
    "svg": "<svg/onload=window.hacked=3><a href=javascript:alert(2)>x</a>",
    "control": "a\u0000b\u0007c\u001b[31md\r\u0085e\u2028f\u2029g",
    "bidi": "safe\u202egnp.exe\u2066x\u2069\u200f!",
    "half": "half \ud83d of a character",
    "styles": "<style>*{display:none}</style><base href=https://example.com/><meta http-equiv=refresh>",
}


def trained_run(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small real run."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    output = shared / f"report-run-{os.environ.get('PYTEST_XDIST_WORKER', 'one')}" / "run"
    if not (output / "policy").exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        recipe = counting_recipe(
            output.parent,
            train={"steps": 3, "minibatches_per_step": 1, "source_gradients_every_steps": 1},
            evaluate={"at_steps": [1, 3], "problems": 4, "samples_per_problem": 4},
        )
        succeed("train", recipe, f"policy.model={counting_policy(factory)}", f"run.output={output}")
    return output


def segment(source: str, text: str, log_probs: Sequence[float] = ()) -> dict[str, Any]:
    """Return a recorded segment of one token for each word."""
    ids = list(range(1, 1 + len(text.split()) or 1))
    found: dict[str, Any] = {"source": source, "ids": ids, "text": text}
    if source == "policy":
        found["log_probs"] = list(log_probs) or [-0.5] * len(ids)
    return found


def consultation(agent: str | None, request: str, reply: str = "", **changes: Any) -> dict[str, Any]:
    """Return a recorded consultation."""
    known = {"outcome": "answered" if reply else "malformed", "reply_tokens": len(reply.split())}
    rest = {"detail": "", "context": "", "failure": None, "prompt_tokens": 0, "completion_tokens": 0}
    return (
        {"agent": agent, "request": request, "reply": reply, "cost": 0.0, "leaked": False}
        | known
        | rest
        | changes
    )


def rollout(step: int, problem: str, index: int, verdict: str = "correct", **changes: Any) -> dict[str, Any]:
    """Return a recorded rollout; the first half of a group of four may consult."""
    asked = changes.pop("consultations", [])
    segments = [segment("prompt", "how many"), segment("policy", "I ask")]
    for each in asked:
        segments.append(segment("feedback" if each["reply"] else "scaffold", each["reply"] or "a notice"))
        segments.append(segment("policy", "I see"))
    return {
        "schema": 1,
        "step": step,
        "rollout": f"{problem}#{index}",
        "problem": problem,
        "problem_text": "how many",
        "gold": "8",
        "stratum": "hard",
        "condition": "consulting" if index < 2 else "solo",
        "verdict": verdict,
        "reason": "different" if verdict == "incorrect" else "",
        "stop": "end",
        "weights_version": None,
        "response": "I see",
        "segments": segments,
        "consultations": asked,
    } | changes


def group(step: int, problem: str, verdicts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rollouts of a group; the first of them asked the Knowledge Agent."""
    asked = [consultation("knowledge", "a dog?", "4")]
    return [
        rollout(step, problem, i, verdict, consultations=asked if i == 0 else [])
        for i, verdict in enumerate(verdicts)
    ]


class RunWriter:
    """Writes the files of a run."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        settings = load_settings(None, [f"run.output={folder}", *overrides])
        (folder / "settings.toml").write_text(dump_settings(settings))

    def lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> "RunWriter":
        """Write one of the files with a line for each row."""
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return self

    def metrics(self, steps: int = 2, **more: float) -> "RunWriter":
        """Write metrics of a few steps."""
        rows = [
            {"step": s, "reward_solo": s / steps, "policy_tokens": 10.0, **more} for s in range(1, steps + 1)
        ]
        return self.lines("metrics.jsonl", rows)

    def evaluated(
        self,
        step: int,
        correct: Sequence[int],
        mode: str = "unanswered",
        seed: int = 0,
        strata: Sequence[str] = ("hard",),
    ) -> "RunWriter":
        """Append an evaluation: for each problem of each stratum, how many of 4 samples were correct."""
        results = [
            {"problem": f"{name}-p{i}", "stratum": name, "samples": 4, "correct": c}
            | {"ungraded": 0, "truncated": 0}
            for name in strata
            for i, c in enumerate(correct)
        ]
        name = self.folder.name
        row = {"schema": 1, "run": name, "method": name, "seed": seed, "step": step, "split": "test"}
        with (self.folder / "evaluation.jsonl").open("a") as file:
            file.write(json.dumps({**row, "mode": mode, "results": results, "meta": {}}) + "\n")
        return self
