"""What a reader wants to know of a run before any curve: settings, versions, data, seeds, cost, warnings.

A number that was not recorded is said to be missing; a warning names its worst step.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

from aipo.config.loader import diff_settings
from aipo.config.settings import Settings
from aipo.report.folders import RunData
from aipo.report.scan import Scan
from aipo.report.weights import rule
from aipo.training.changes import read_changes
from aipo.training.metrics import NO_ANSWER
from aipo.training.trends import Trends

Pairs = list[tuple[str, str]]
_PAID = ("agent", "judge")
MUCH_ZERO_VARIANCE, MUCH_TRUNCATED, MUCH_MISMATCH, MUCH_LEAKED = 0.5, 0.1, 0.01, 0.01


def summary(run: RunData, scan: Scan) -> dict[str, Any]:
    """Return a run's summary: lists of pairs and of sentences."""
    return {
        "facts": _facts(run, scan),
        "settings": _changed(run),
        "cost": _cost(run),
        "agents": _agents(run),
        "warnings": _warnings(run, scan),
        "time": _time(run),
    }


def _facts(run: RunData, scan: Scan) -> Pairs:
    s, facts = run.settings, [("folder", str(run.path))]
    if run.metrics:
        of = f" of {s.train.steps}" if s else ""
        facts.append(("updates", f"{run.metrics[-1]['step']}{of}"))
    if s:
        files = [str(f) for f in (s.task.train_file, s.task.validation_file, s.task.test_file) if f]
        algorithm = f"{s.algorithm.name}, feedback {s.algorithm.feedback_advantage}"
        facts += [
            ("data", s.task.name + (f" ({', '.join(files)})" if files else "")),
            ("policy", s.policy.model),
            ("engine", s.engine.name),
            ("algorithm", algorithm),
            ("coefficient", rule(s)),
            ("seeds", f"training {s.run.seed}, evaluation {s.evaluate.seed}"),
        ]
    if scan.rollouts:
        strata = ", ".join(f"{name} {count:,}" for name, count in sorted(scan.strata.items()))
        facts.append(
            (
                "recorded rollouts",
                f"{scan.rollouts:,} of {len(scan.steps)} steps, {len(scan.problems):,} problems ({strata})",
            )
        )
    changed = [
        f"from step {entry['from_step']}: {'; '.join(entry['changes'])}" for entry in read_changes(run.path)
    ]
    facts += [("settings changed", change) for change in changed]
    return facts + _versions(run)


def _versions(run: RunData) -> Pairs:
    """Return what wrote the newest checkpoint, and what wrote the report: a run may be resumed by another."""
    found: Pairs = []
    if wrote := newest_checkpoint(run.path):
        code, libraries = wrote.get("code", {}), wrote.get("libraries", {})
        git = f" ({code['git']})" if code.get("git") else ""
        found.append(("aipo", f"{code.get('version', 'not recorded')}{git}"))
        found.append(
            ("libraries", ", ".join(f"{name} {v}" for name, v in libraries.items()) or "not recorded")
        )
    elif config := _json(run.path / "policy" / "config.json"):
        found.append(("transformers", str(config.get("transformers_version", "not recorded"))))
    return [*found, ("report made by", f"aipo {version('aipo')}")]


def newest_checkpoint(folder: Path) -> dict[str, Any]:
    """Return what the newest checkpoint says of the code that wrote it; {} where that is not recorded."""
    for path in sorted((folder / "checkpoints").glob("step-*/state.json"), reverse=True):
        state = _json(path)
        if "code" in state or "libraries" in state:
            return state
    return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # not there, or being written: a report of a run under way goes on without
    return found if isinstance(found, dict) else {}


def _changed(run: RunData) -> list[tuple[str, str, str]]:
    """Return key, default and value of each setting that is not its default."""
    if run.settings is None:
        return []
    changed = []
    for line in diff_settings(Settings(), run.settings):
        key, _, values = line.partition(": ")
        default, _, value = values.partition(" -> ")
        changed.append((key, default, value))
    return changed


def _cost(run: RunData) -> Pairs:
    if not run.metrics:
        return []
    sums = {
        name: _sum(run.metrics, name)
        for name in ("policy_tokens", "feedback_tokens", "agent_prompt_tokens", "agent_completion_tokens")
    }
    last = run.metrics[-1]
    cost: Pairs = [
        ("policy tokens learnt from", f"{sums['policy_tokens']:,.0f}"),
        ("feedback tokens learnt from", f"{sums['feedback_tokens']:,.0f}"),
    ]
    if "expert_tokens_raw" in last:
        words = f"{last['expert_tokens_raw']:,} ({last['expert_tokens_distinct']:,} distinct)"
        cost.append(("agents' tokens read by the policy", words))
    if sums["agent_prompt_tokens"] or sums["agent_completion_tokens"]:
        cost.append(("agents read", f"{sums['agent_prompt_tokens']:,.0f} tokens"))
        cost.append(("agents wrote", f"{sums['agent_completion_tokens']:,.0f} tokens"))
    judge_read, judge_wrote = (_sum(run.metrics, f"judge_{kind}_tokens") for kind in ("prompt", "completion"))
    if judge_read or judge_wrote:
        cost.append(("judges read and wrote", f"{judge_read:,.0f} and {judge_wrote:,.0f} tokens"))
    spent = {who: (_sum(run.metrics, f"{who}_cost"), _sum(run.timings, f"{who}_cost_paid")) for who in _PAID}
    money = [f"{all_:,.4g} for {who}s, {paid:,.4g} paid" for who, (all_, paid) in spent.items() if all_]
    words = f"{'; '.join(money)} (the rest came from the cache)" if money else "no prices given"
    return [*cost, ("money", words)]


def _agents(run: RunData) -> list[dict[str, Any]]:
    """Return who answered, from which step on: `agents.json` as it stands."""
    return [
        {
            "from_step": entry["from_step"],
            "agents": [
                (name, ", ".join(f"{key} {value}" for key, value in sorted(known.items())))
                for name, known in entry["agents"].items()
            ],
        }
        for entry in run.agents
    ]


def _warnings(run: RunData, scan: Scan) -> list[str]:
    found = [run.problem] if run.problem else []
    if run.settings and run.metrics and run.metrics[-1]["step"] < run.settings.train.steps:
        found.append(
            f"Not finished: {run.metrics[-1]['step']} of {run.settings.train.steps} updates are recorded."
        )
    if run.settings:
        said = Trends(run.settings).replay(run.metrics)
        found += [f"Step {step}: {what}." for step, what in said]
    found += _share(run, "ungraded_share", 0.0, "of the rollouts could not be graded")
    if scan.ungraded_reasons:
        reasons = "; ".join(f"{reason} ({n:,})" for reason, n in scan.ungraded_reasons.most_common(3))
        found.append(f"Reasons of ungraded rollouts in the records: {reasons}.")
    for agent in _agents_in(run, "failures", "unreadable_replies"):
        counts = {o: _sum(run.metrics, f"failures/{agent}/{o}") for o in NO_ANSWER}
        if any(counts.values()):
            words = ", ".join(f"{count:,.0f} {o.replace('_', ' ')}" for o, count in counts.items() if count)
            found.append(f"Agent {agent} gave no answer: {words}.")
        if unreadable := _sum(run.metrics, f"unreadable_replies/{agent}"):
            found.append(f"Agent {agent}: {unreadable:,.0f} replies could not be read.")
    found += _share(run, "zero_variance_share", MUCH_ZERO_VARIANCE, "of the groups had equal verdicts")
    found += _share(run, "truncated_share", MUCH_TRUNCATED, "of the rollouts were truncated")
    found += _share(
        run,
        "mismatch_outside_share",
        MUCH_MISMATCH,
        "of the tokens differ twofold between sampler and trainer",
    )
    for agent in _agents_in(run, "leaks"):
        found += _share(run, f"leaks/{agent}", MUCH_LEAKED, f"of {agent}'s replies stated the final answer")
    if scan.unreadable:
        found.append(f"{scan.unreadable} lines of rollouts.jsonl are no records and were left out.")
    return found


def _agents_in(run: RunData, *metrics: str) -> list[str]:
    """Return the agents that the run has one of these metrics of, in their order."""
    names = (name.split("/") for row in run.metrics for name in row)
    return list(dict.fromkeys(parts[1] for parts in names if parts[0] in metrics))


def _share(run: RunData, metric: str, limit: float, words: str) -> list[str]:
    """Return a sentence where the mean over steps of a share is above a limit."""
    values = [(row[metric], row["step"]) for row in run.metrics if metric in row and isfinite(row[metric])]
    mean = sum(value for value, _ in values) / len(values) if values else 0.0
    if mean <= limit:
        return []
    worst, step = max(values, key=lambda pair: (pair[0], -pair[1]))
    return [f"{mean:.1%} {words}, on average over steps; most in step {step}: {worst:.1%}."]


def _time(run: RunData) -> list[tuple[str, float]]:
    parts = (("rollouts", "rollout_s"), ("update", "update_s"), ("evaluation", "evaluate_s"))
    return [(label, round(_sum(run.timings, name), 2)) for label, name in parts]


def _sum(rows: Sequence[dict[str, Any]], name: str) -> float:
    return sum(row.get(name, 0.0) for row in rows)
