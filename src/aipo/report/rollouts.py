"""Sampled rollouts as the viewer needs them: texts by source, tokens' probabilities, credit, consultations.

Whatever a model wrote, the result is bounded; what was cut off says how much it was.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from math import exp, isfinite
from typing import Any

from aipo.config.settings import Settings
from aipo.report.scan import Row
from aipo.report.tokens import Pieces
from aipo.report.weights import UNKNOWN, Credited, credited, weight

MOST_CHARS = 40_000
"""Of one text; the rest stays in rollouts.jsonl."""
MOST_CONSULTATIONS = 200
"""Of one rollout."""
PER_NAT = 1000
"""Log-probabilities are kept as whole thousandths of a nat: 0 to 4 digits instead of 9 characters a token."""
Latencies = dict[tuple[int, str], list[float]]
"""Seconds of each consultation, by step and rollout."""
Weigher = Callable[[int], float]


def shown_groups(
    groups: Sequence[Sequence[Row]],
    settings: Settings | None,
    pieces: Pieces,
    latencies: Latencies,
    most_bytes: int,
) -> list[dict[str, Any]]:
    """Return as many groups as fit into `most_bytes` of JSON, at least one, in order of steps."""
    found: list[dict[str, Any]] = []
    spent = 0
    for group in groups:
        shown = _group(group, settings, pieces, latencies)
        spent += len(json.dumps(shown, ensure_ascii=False))
        if found and spent > most_bytes:
            break
        found.append(shown)
    return sorted(found, key=lambda group: (group["step"], group["problem"]))


def _group(
    rows: Sequence[Row], settings: Settings | None, pieces: Pieces, latencies: Latencies
) -> dict[str, Any]:
    first = rows[0]
    credits = credited(rows, settings) if settings else [UNKNOWN] * len(rows)
    weigh = _weigher(settings, first["step"]) if settings else None
    return {
        "step": first["step"],
        "problem": cut(str(first["problem"]), 500)["text"],
        "text": cut(str(first.get("problem_text", ""))),
        "gold": cut(str(first.get("gold", "")), 2000)["text"],
        "stratum": str(first.get("stratum", ""))[:200],
        "rollouts": [
            _rollout(row, credit, partial(_segment, pieces=pieces, weigh=weigh), latencies)
            for row, credit in zip(rows, credits, strict=True)
        ],
    }


def _weigher(settings: Settings, step: int) -> Weigher:
    """Return W by log p in thousandths of a nat; a rollout repeats few of them."""
    return cache(lambda nats: float(f"{weight(exp(-nats / PER_NAT), settings, step):.3g}"))


def _rollout(
    row: Row, credit: Credited, segment: Callable[[dict[str, Any]], dict[str, Any]], latencies: Latencies
) -> dict[str, Any]:
    waited = latencies.get((row["step"], row["rollout"]), [])
    inserted = [
        i
        for i, s in enumerate(row["segments"])
        if s["source"] in ("feedback", "scaffold") and not s.get("opened")
    ]
    consultations = row["consultations"][:MOST_CONSULTATIONS]
    return {
        "id": str(row["rollout"])[:500],
        "condition": row.get("condition"),
        "verdict": row["verdict"],
        "reason": cut(_reason(row), 2000)["text"],
        **({"reward": _short(row["reward"])} if "reward" in row else {}),
        "stop": row.get("stop"),
        "weights": row.get("weights_version"),
        "credit": [_short(credit.policy), _short(credit.feedback)],
        "segments": [segment(one) for one in row["segments"]],
        "consultations": [
            # What came of the n-th request is the n-th insertion, unless the rollout ended before it fitted.
            _consultation(
                c, inserted[i] if i < len(inserted) else None, waited[i] if i < len(waited) else None
            )
            for i, c in enumerate(consultations)
        ],
        "more_consultations": len(row["consultations"]) - len(consultations),
    }


def _reason(row: Row) -> str:
    """Return why a rollout was graded so; what a judge said follows."""
    judged = row.get("judged", {})
    return "; ".join(
        [str(row.get("reason", "")), *(f"{name}: {one['said']}" for name, one in judged.items())]
    )


def _segment(segment: dict[str, Any], pieces: Pieces, weigh: Weigher | None) -> dict[str, Any]:
    text = cut(segment["text"])
    shown = {"source": segment["source"], "tokens": len(segment["ids"]), **text}
    if segment.get("opened"):
        shown["opened"] = True
    cuts = pieces.cuts(segment["ids"], segment["text"]) if not text["more"] else None
    if cuts:
        shown["cuts"] = cuts
    log_probs = segment.get("log_probs") or segment.get("policy_log_probs")
    if log_probs and all(map(isfinite, log_probs)):
        kept = log_probs if not text["more"] else log_probs[:MOST_CHARS]
        shown["nats"] = [round(-log_prob * PER_NAT) for log_prob in kept]
    if weigh and "policy_log_probs" in segment and "nats" in shown:
        shown["weights"] = [weigh(nats) for nats in shown["nats"]]
    return shown


def _consultation(c: dict[str, Any], segment: int | None, latency_s: float | None) -> dict[str, Any]:
    return {
        "agent": c.get("agent"),
        "outcome": c["outcome"],
        "request": cut(c["request"]),
        "reply": cut(c["reply"]),
        "detail": cut(c.get("detail") or "", 2000)["text"],
        "failure": c.get("failure"),
        "reply_tokens": c.get("reply_tokens"),
        "read": c.get("prompt_tokens"),
        "wrote": c.get("completion_tokens"),
        "cost": c.get("cost"),
        "leaked": c.get("leaked"),
        "elicited": c.get("elicited", False),
        "latency_s": None if latency_s is None else round(latency_s, 4),
        "segment": segment,
    }


def cut(text: str, most: int = MOST_CHARS) -> dict[str, Any]:
    """Return a text's beginning and how many characters were left out.

    >>> cut("abc", 2)
    {'text': 'ab', 'more': 1}
    """
    kept = text[:most]
    return {"text": kept, "more": len(text) - len(kept)}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
