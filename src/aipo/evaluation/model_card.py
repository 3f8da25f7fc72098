"""The model card of an exported policy, made from what its run recorded; every figure in it is a record's.

The same records give the same bytes, and nothing in a record can end the YAML header, a table's row or the
code block of the settings. The licence is left to the user. Addresses, paths, commands and environments in
the settings are left out, because a card is made to be published.
"""

import json
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from aipo.config.loader import diff_settings, load_settings
from aipo.config.settings import Settings
from aipo.evaluation.records import EvaluationRecord, at_last_step, read_records
from aipo.evaluation.statistics import estimate
from aipo.evaluation.table import format_estimate
from aipo.training.durable import write_whole
from aipo.training.journal import AGENTS, EVALUATION, METRICS, SETTINGS, read_lines

CARD = "README.md"
LIBRARIES = ("aipo", "torch", "transformers", "tokenizers", "peft")
MAX_VALUE_CHARACTERS = 300
MAX_SETTINGS = 200
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_PRIVATE = (
    "url",
    "urls",
    "devices",
    "command",
    "arguments",
    "environment",
    "api_key_env",
    "output",
    "folder",
    "file",
)
"""Last words of settings that say more of a machine than of a policy."""


def write_model_card(run: Path, policy: Path) -> Path:
    """Write the card of the run in `run` into the folder `policy`, aside first; return its path."""
    path = policy / CARD
    write_whole(path, model_card(run))
    return path


def model_card(run: Path) -> str:
    """Return the card. Raises `ValueError` for records that cannot be read."""
    settings = load_settings(run / SETTINGS, [])
    metrics = read_lines(run / METRICS)
    evaluation = run / EVALUATION
    records = at_last_step(read_records(evaluation)) if evaluation.exists() else []
    sections = [
        _header(settings),
        _summary(settings, metrics),
        _agents(run / AGENTS, settings),
        _scores(records, settings),
        _settings(settings),
        _versions(),
        "## Licence\n\nNot stated yet: whoever publishes this policy adds `license:` to the header above, in "
        "keeping with that of the model it began with and of the data.\n",
    ]
    return "\n".join(sections)


def inline(text: object) -> str:
    """Return text of unknown origin as one piece of Markdown that shows it and does nothing else.

    >>> inline("a|b`c<i>" + chr(10) + "# d [e](f)")
    'a\\\\|b\\\\`c&lt;i&gt; \\\\# d \\\\[e\\\\](f)'
    """
    flat = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    flat = flat if len(flat) <= MAX_VALUE_CHARACTERS else f"{flat[:MAX_VALUE_CHARACTERS]}…"
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", flat)


def _header(settings: Settings) -> str:
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["aipo", "reinforcement-learning", settings.algorithm.name],
    }
    model = settings.policy.model
    if _HUB_ID.fullmatch(model) and not Path(model).exists():
        header["base_model"] = model
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=False)}---\n"


def _summary(settings: Settings, metrics: list[dict[str, Any]]) -> str:
    steps = int(metrics[-1]["step"]) if metrics else 0
    task = settings.task
    data = f" ({inline(task.train_file.name)})" if task.train_file else ""
    trained = (
        f"LoRA of rank {settings.policy.lora_rank}, merged" if settings.policy.lora_rank else "all weights"
    )
    rows = {
        "began with": inline(
            Path(settings.policy.model).name if _is_path(settings) else settings.policy.model
        ),
        "task": f"{inline(task.name)}{data}",
        "algorithm": f"{settings.algorithm.name}, feedback coefficient {settings.algorithm.coefficient}",
        "policy updates": f"{steps} of {settings.train.steps}",
        "trained": f"{trained}, {settings.policy.precision}",
        "seed": settings.run.seed,
    }
    if metrics:
        ratios = [row["first_ratio_error"] for row in metrics if "first_ratio_error" in row]
        rows["largest error of the first update's ratio"] = f"{max(ratios, default=0.0):.1g}"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "# A policy trained with AIPO\n\n"
        "Trained with [AIPO](https://arxiv.org/abs/2605.08401): reinforcement learning with verifiable "
        "rewards in which the policy may consult agents while it reasons in training. **It reasons alone "
        "after training: it needs no agent.**\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def _is_path(settings: Settings) -> bool:
    return Path(settings.policy.model).exists() or not _HUB_ID.fullmatch(settings.policy.model)


def _agents(path: Path, settings: Settings) -> str:
    head = "## Agents in training\n"
    entries = json.loads(path.read_text()) if path.exists() else []
    if not settings.agents.enabled or not entries:
        names = ", ".join(settings.agents.enabled)
        return f"{head}\n{f'{names}; who stood behind them was not recorded.' if names else 'None.'}\n"
    lines = [
        f"- from step {inline(entry['from_step'])}, {inline(name)}: {_known(facts)}"
        for entry in entries
        for name, facts in sorted(entry["agents"].items())
    ]
    return f"{head}\nThey answered requests during training only.\n\n" + "\n".join(lines) + "\n"


def _known(facts: Mapping[str, Any]) -> str:
    shown = [f"{inline(key)} {inline(value)}" for key, value in facts.items() if not _private(key) and value]
    return ", ".join(shown) or "nothing recorded"


def _scores(records: Iterable[EvaluationRecord], settings: Settings) -> str:
    rows = [
        f"| {inline(record.mode)} | {inline(record.split)} | {record.step} | {inline(stratum)} | {k} | "
        f"{format_estimate(cell)} | {cell.problems} x {cell.samples} |"
        for record in records
        for stratum in record.strata
        for k in settings.evaluate.pass_at
        if (cell := estimate([record], stratum, k)).problems
    ]
    if not rows:
        return "## Evaluation\n\nNone was recorded with this run.\n"
    return (
        "## Evaluation\n\nShares with 95 % intervals over samples and problems, one training seed. "
        "`unanswered` and `banned` are alone: requests get no answer, or cannot be written.\n\n"
        "| mode | split | step | problems | k | pass@k | problems x samples |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _settings(settings: Settings) -> str:
    changed = [line for line in diff_settings(Settings(), settings) if not _private(line.partition(":")[0])]
    # Four spaces make a code block that no line can end: each setting is one line.
    lines = ["".join(c if c.isprintable() else " " for c in line) for line in changed[:MAX_SETTINGS]]
    cut = [line if len(line) <= MAX_VALUE_CHARACTERS else f"{line[:MAX_VALUE_CHARACTERS]}…" for line in lines]
    block = "\n".join(f"    {line}" for line in cut) or "    (none)"
    return f"## Settings that differ from the defaults\n\n{block}\n"


def _private(name: str) -> bool:
    last = name.rpartition(".")[2].lower()
    return name == "policy.model" or any(last == word or last.endswith(f"_{word}") for word in _PRIVATE)


def _versions() -> str:
    return "## Versions\n\n" + ", ".join(f"{name} {version(name)}" for name in LIBRARIES) + "\n"
