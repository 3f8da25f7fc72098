"""Record how well policies know their consult-stripped copies, where a request was cut out and elsewhere.

Usage: copy_decisions.py RUNS OUTPUT METHOD ...: RUNS is the output folder of a comparison, with its policies.

Why may a policy that has learnt from copies still fail where requests are banned? There it writes what is
left when the requests' probability is taken away. Reported by scripts/results_page.py.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from aipo.assembly.parts import Parts, assemble
from aipo.config.loader import load_settings
from aipo.core.tokens import stripped_copy
from aipo.core.types import Verdict
from aipo.rollout.group import GroupShape, MemberRollout
from aipo.tasks.base import Split
from aipo.training.provenance import code_revision

PROBLEMS, ROLLOUTS = 24, 2
KINDS = ("first request cut out", "later request cut out", "elsewhere")


def main(runs: Path, output: Path, methods: list[str]) -> None:
    """Measure each seed of the methods and write the record."""
    of_methods = {method: [of_run(folder) for folder in seeds(runs / method)] for method in methods}
    record = {"problems": PROBLEMS, "rollouts": ROLLOUTS, "code": code_revision(), "methods": of_methods}
    output.write_text(json.dumps(record, indent=1) + "\n")


def seeds(method: Path) -> list[Path]:
    """Return the folders of a method's finished runs."""
    return sorted(policy.parent for policy in method.glob("seed-*/policy"))


def of_run(folder: Path) -> dict[str, dict[str, float]]:
    """Return means over the tokens of one run's copies, of correct rollouts on hard validation problems."""
    policy = [f"policy.model={folder / 'policy'}", "run.output=/tmp/copy-decisions", "run.threads=1"]
    settings = load_settings(folder.with_suffix(".toml"), policy)
    with closing(assemble(settings)) as parts:
        pool = [p for p in parts.task.problems(Split.VALIDATION) if p.stratum == "hard"][:PROBLEMS]
        groups = asyncio.run(
            parts.sampler.groups(pool, GroupShape(consulting=ROLLOUTS, solo=0), (0, "copy decisions"))
        )
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for group in groups:
            for member in group.members:
                if member.rollout and member.grade.verdict is Verdict.CORRECT:
                    for kind, own, request in probabilities(parts, member, group.solo_prompt_ids):
                        found[kind].append((own, request))
    return {
        kind: {
            "tokens": len(pairs),
            "probability": sum(own for own, _ in pairs) / max(1, len(pairs)),
            "request_probability": sum(request for _, request in pairs) / max(1, len(pairs)),
        }
        for kind, pairs in found.items()
    }


def probabilities(
    parts: Parts, member: MemberRollout, prompt: tuple[int, ...]
) -> Iterator[tuple[str, float, float]]:
    """Yield for each token of a copy: its kind, its probability, and that of a request in its place."""
    assert member.rollout is not None
    stream, consult_spans = member.rollout.stream, member.rollout.consult_spans
    opens = {ids[0] for ids in parts.sampler.consult.codec.banned_sequences()}
    gone = {i for start, end in consult_spans for i in range(start, end)}
    kinds, cut, cuts = [], False, 0
    for i in range(stream.prompt_length, len(stream)):
        if i in gone:
            cut |= stream.ids[i] in opens
        else:
            kinds.append(KINDS[min(cuts, 1)] if cut else KINDS[2])
            cuts += cut
            cut = False
    copy = stripped_copy(stream, consult_spans, prompt)
    with torch.no_grad():
        table = parts.model(torch.tensor([copy.ids])).logits[0].float().softmax(-1)
    for at, kind in enumerate(kinds, start=len(prompt)):
        row = table[at - 1]
        yield kind, row[copy.ids[at]].item(), row[sorted(opens)].sum().item()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
