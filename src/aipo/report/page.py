"""The report: from run folders to one HTML file that opens from disk. Start reading here.

How it looks is in `assets/`. Nothing that a model, a file or a setting says is ever markup: all data stands
as JSON in one inert element, with `<`, `>`, `&` and line separators escaped, and the scripts put it on the
page as text; the content security policy allows these scripts by their hashes and no request at all.
"""

import json
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from html import escape
from importlib.metadata import version
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from aipo.agents.named import AGENTS
from aipo.core.registry import RegistryError
from aipo.evaluation.records import methods_of
from aipo.report.accuracy import accuracy_panels, boundary_panels, evaluations, policy_folders
from aipo.report.curves import panels
from aipo.report.expert_tokens import spent_tokens
from aipo.report.folders import RunData, read_runs
from aipo.report.results import result_tables
from aipo.report.rollouts import Latencies, shown_groups
from aipo.report.scan import Scan, scan
from aipo.report.summary import summary
from aipo.report.tokens import Pieces
from aipo.report.value import MALFORMED, ValueOfConsultation
from aipo.report.weights import rule
from aipo.training.journal import ROLLOUTS, RunFolderError

ROLLOUT_BYTES = 3_000_000
"""Of all rollouts in the file: with curves and code it stays below 5 MB."""
MOST_REQUESTS = 12
UNKNOWN_AGENT = ("#7a3a9a", "#d39bf0")
"""On light and on dark paper."""
SCRIPTS = ("dom.js", "text.js", "charts.js", "tables.js", "overview.js", "rollout.js", "viewer.js", "main.js")
_ESCAPED = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
"""What could end a script element or a line of it, and halves of characters, which UTF-8 cannot hold."""


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """What a report is asked for."""

    rollouts: int = 400
    """About how many rollouts are shown, of all runs together."""
    baseline: str = ""
    """The method that the others are compared with; none: the first run's."""
    seed: int = 0
    """Of the sample of rollouts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written."""

    runs: int
    rollouts: int
    recorded: int
    bytes: int


def write_report(paths: Sequence[Path], output: Path, wanted: ReportSettings) -> Written:
    """Write the report of the runs in `paths`.

    Raises `RunFolderError` where there is no run or no such baseline, `RecordError` for evaluations that
    cannot be read.
    """
    runs = read_runs(paths)
    data = report_data(runs, wanted)
    page = html_page(" · ".join(dict.fromkeys(run.method for run in runs)), data)
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f"{output.name}.partial")
    aside.write_bytes(page)
    aside.replace(output)
    shown = sum(len(group["rollouts"]) for run in data["runs"] for group in run["groups"])
    recorded = sum(run["recorded"]["rollouts"] for run in data["runs"])
    return Written(runs=len(runs), rollouts=shown, recorded=recorded, bytes=len(page))


def report_data(runs: Sequence[RunData], wanted: ReportSettings) -> dict[str, Any]:
    """Return all that the page shows."""
    records = evaluations(runs)
    methods = list(dict.fromkeys([*(run.method for run in runs), *methods_of(records)]))
    baseline = wanted.baseline or methods[0]
    if baseline not in methods:
        raise RunFolderError(f"--baseline {baseline!r} is no method of these runs; there are {methods}")
    least = min((r.samples for record in records for r in record.results), default=1)
    pass_at = next((r.settings.evaluate.pass_at for r in runs if r.settings), tuple(sorted({1, least})))
    shown = [_run(run, wanted, len(runs)) for run in runs]
    return {
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": version("aipo"),
        "methods": methods,
        "agents": _agents(runs, shown),
        "runs": shown,
        "accuracy": accuracy_panels(records),
        "boundary": boundary_panels(records),
        "panels": panels(runs),
        "results": result_tables(records, pass_at, baseline, spent_tokens(runs)),
    }


def _agents(runs: Sequence[RunData], shown: Sequence[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Return the colours of the agents of the settings, then of others that were asked.

    An agent whose module is not here has the colours of all such.
    """
    named = dict.fromkeys(agent for run in runs if run.settings for agent in run.settings.agents.enabled)
    asked = [asked["agent"] for run in shown for asked in run["requests"] if asked["agent"] != MALFORMED]
    colours: dict[str, tuple[str, str]] = {}
    for name in dict.fromkeys([*named, *asked]):
        try:
            spec = AGENTS[name]
            colours[spec.name] = spec.colour
        except RegistryError:
            if ":" not in name:
                colours.setdefault(name, UNKNOWN_AGENT)
    return colours


def _agent_style(agents: dict[str, tuple[str, str]]) -> str:
    """Return the classes of the agents' colours, by their position."""
    rules = []
    for position, (light, dark) in enumerate(agents.values()):
        own = f"light-dark({light}, {dark})"
        paper = f"color-mix(in srgb, {own} 10%, var(--sheet))"
        rules.append(f".agent-{position} {{ --own: {own}; --own-paper: {paper}; }}\n")
    return "".join(rules)


def _run(run: RunData, wanted: ReportSettings, runs: int) -> dict[str, Any]:
    value = ValueOfConsultation()
    found, sample = scan(run.path / ROLLOUTS, wanted.rollouts // runs, wanted.seed, value.see)
    groups = shown_groups(
        sample, run.settings, Pieces(policy_folders(run)), _latencies(run), ROLLOUT_BYTES // runs
    )
    return {
        "title": run.title,
        "method": run.method,
        "seed": run.seed,
        "summary": summary(run, found),
        "recorded": _recorded(found),
        "value": [asdict(worth) for worth in value.worths()],
        "requests": [asdict(asked) for asked in value.most_asked(MOST_REQUESTS)],
        "distinct_requests": value.distinct_requests,
        "rule": rule(run.settings) if run.settings else "",
        "groups": groups,
    }


def _recorded(found: Scan) -> dict[str, Any]:
    return {
        "rollouts": found.rollouts,
        "groups": found.groups,
        "steps": len(found.steps),
        "verdicts": dict(found.verdicts),
    }


def _latencies(run: RunData) -> Latencies:
    return {
        (row["step"], rollout): waited
        for row in run.timings
        for rollout, waited in row.get("consultations_s", {}).items()
    }


def html_page(title: str, data: Any) -> bytes:
    """Return the whole file."""
    script = "\n".join(_asset(name) for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    style = _asset("style.css") + _agent_style(data.get("agents", {}))
    parts = {
        "TITLE": escape(f"{title} · aipo report"),
        "POLICY": escape(_security_policy(script, style)),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": inert_json(data),
    }
    page = re.sub(r"@@([A-Z]+)@@", lambda match: parts[match[1]], _asset("page.html"))
    return page.encode(errors="replace")  # a folder's name need not be text; all else is escaped by now


def inert_json(data: Any) -> str:
    r"""Return JSON that ends no element and starts no tag, wherever it stands in a page.

    >>> inert_json("</script>&")
    '"\\u003c/script\\u003e\\u0026"'
    """
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: Any) -> Any:
    """Return the value with None for what JSON has no word for."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _security_policy(script: str, style: str) -> str:
    """Return the policy: these two texts may act, nothing may be loaded, sent or framed."""
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (files("aipo.report") / "assets" / name).read_text(encoding="utf-8")
