"""Write benchmarks/README.md from results/benchmarks/*.json: no figure is typed by hand.

Each figure stands beside its bound or peer, what was asked of it, and whether that was met; a record of a
quick run is refused.
"""

import json
from pathlib import Path
from typing import Any

from measure import RECORDS, ROOT

HEAD = """# Benchmarks

Written by `benchmarks/page.py` from the records in `results/benchmarks/`; do not edit.

    OMP_NUM_THREADS=1 python benchmarks/overlap.py        # rollouts beside their bound and TRL's tool loop
    OMP_NUM_THREADS=1 python benchmarks/crossing.py       # steps with slow agents beside their bound
    OMP_NUM_THREADS=1 python benchmarks/prefill.py        # tokens forwarded over distinct tokens
    OMP_NUM_THREADS=1 python benchmarks/decode.py         # tokens per CPU-second beside `generate` and vLLM
    OMP_NUM_THREADS=1 python benchmarks/rollout_loop.py   # consultations per CPU-second, nothing to wait for
    OMP_NUM_THREADS=1 python benchmarks/load.py           # 2,000 rollouts in flight on servers that fail
    OMP_NUM_THREADS=1 python benchmarks/report.py         # `aipo report` of 50,000 rollouts: time and memory
    OMP_NUM_THREADS=1 python benchmarks/log_prob_memory.py  # memory of log-probabilities beside all logits
    OMP_NUM_THREADS=1 AIPO_SMOLLM2=FOLDER python benchmarks/memory.py  # a run's memory beside the estimate
    OMP_NUM_THREADS=1 python benchmarks/step.py           # a GRPO step beside TRL's and a bare loop
    OMP_NUM_THREADS=1 AIPO_SMOLLM2=FOLDER python benchmarks/step_smollm2.py  # the same on a pretrained model
    OMP_NUM_THREADS=1 AIPO_SMOLLM2=FOLDER python benchmarks/compiled.py  # train.compile beside plain layers
    OMP_NUM_THREADS=1 python benchmarks/update.py         # the update beside a bare forward and backward pass
    OMP_NUM_THREADS=1 python benchmarks/costs.py          # cost against length, group size and consultations
    python benchmarks/page.py                             # this page

`--quick` runs a tiny size, which proves nothing; `--repeats N`; `--peer COMMAND` names TRL's Python
(`scripts/parity.sh` makes it) or vLLM's command (`scripts/vllm.sh --install`), and those in `build/` are
found by themselves. Each script's first lines say what it measures and what it does not. Peers run in the
same call as ours, turn by turn; figures are medians. CPU-seconds with one thread decide where something
computes; others may share the machine.
"""


def main() -> None:
    """Write the page."""
    path = ROOT / "benchmarks" / "README.md"
    path.write_text(page(RECORDS))
    print(f"wrote {path}")


def page(records: Path) -> str:
    """Return the page. Raises `ValueError` for the record of a quick run."""
    parts = [HEAD]
    for path in sorted(records.glob("*.json")):
        record = json.loads(path.read_text())
        if record["quick"]:
            raise ValueError(
                f"{path} is the record of a quick run, which proves nothing; run it without --quick"
            )
        parts.append(section(record))
    parts.append(gpu_section(records.parent / "gpu"))
    return "\n".join(parts)


def gpu_section(records: Path) -> str:
    """Return what `benchmarks/gpu/run.sh` has measured, or that it has not been run."""
    lines = [
        "## gpu",
        "",
        "`bash benchmarks/gpu/run.sh`: random weights of Qwen2.5's shapes, bf16, one GPU.",
        "",
    ]
    found = sorted(records.glob("*.json"))
    if not found:
        return "\n".join([*lines, "Not run yet: no GPU could be had where this page was written.", ""])
    for path in found:
        record = json.loads(path.read_text())
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        lines += [f"{record['device']}, {record['date'][:10]}, CUDA {record['cuda']}, {versions}.", ""]
        lines += ["| shape | what | figure | |", "|---|---|---|---|"]
        lines += [
            f"| {r['shape']} | {r['what']} | {_number(r['value'])} {r['unit']} | {r['detail']} |"
            for r in record["rows"]
        ]
    return "\n".join([*lines, ""])


def section(record: dict[str, Any]) -> str:
    """Return one record as a table and the conditions it was made in."""
    machine, versions = record["machine"], record["versions"]
    rows = [
        "| what | ours | beside | ratio | asked | met |",
        "|---|---|---|---|---|---|",
        *map(_row, record["figures"]),
    ]
    conditions = (
        f"{record['date'][:10]}, {machine['cpu']} ({machine['cores']} cores, {machine['capability']}), "
        f"{machine['threads']} thread, load average {record['load_average'][0]:g}; "
        f"Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + "."
    )
    figure = record["details"].get("figure")
    picture = [f"![{record['benchmark']}](../{figure})", ""] if figure else []
    return "\n".join([f"## {record['benchmark']}", "", *rows, "", *picture, conditions, ""])


def _row(figure: dict[str, Any]) -> str:
    beside = f"{figure['beside']}: {_number(figure['theirs'])}" if figure["theirs"] is not None else ""
    ratio = f"{figure['ratio']:.2f}" if figure["ratio"] is not None else ""
    met = {True: "yes", False: "**no**", None: ""}[figure["passed"]]
    ours = f"{_number(figure['ours'])} {figure['unit']}"
    return f"| {figure['what']} | {ours} | {beside} | {ratio} | {figure['asked']} | {met} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    main()
