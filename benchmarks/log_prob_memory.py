"""Peak memory and time of log-probabilities, forward and backward, of Qwen's vocabulary: in chunks and whole.

`PolicyForward` as it is by default beside the same with all logits held at once, each in a process of its
own, same weights and ids. Memory is the process's peak (VmHWM) less what it held with the model loaded and
warmed up. By how much values and gradients of the two differ stands in the table.

Not measured here: a GPU, real widths (a hidden size of 64 makes all but the logits small on purpose).
"""

import multiprocessing
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from aipo.training.log_probs import PolicyForward
from measure import Figure, options, report

VOCABULARY = 151_936
POSITIONS = 2048
TEMPERATURE = 0.9
ALLOWED_SHARE = 1 / 8


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the record."""
    given = options("log_prob_memory", arguments)
    positions = 256 if given.quick else POSITIONS
    runs: dict[str, list[dict[str, Any]]] = {"chunks": [], "whole": []}
    for _ in range(given.repeats or (1 if given.quick else 3)):
        for way, found in runs.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found.append(pool.apply(measured, (way, positions, given.quick)))
    chunks, whole = runs["chunks"], runs["whole"]
    peak = {way: statistics.median(run["peak_mb"] for run in found) for way, found in runs.items()}
    cpu = {way: statistics.median(run["cpu_s"] for run in found) for way, found in runs.items()}
    share = peak["chunks"] / peak["whole"]
    apart = [_apart(a, b) for a, b in zip(chunks, whole, strict=True)]
    figures = [
        Figure(
            f"peak beyond the model, {positions:,} positions x {VOCABULARY:,}",
            peak["chunks"],
            "MB",
            "all logits at once",
            peak["whole"],
            share,
            f"at most {ALLOWED_SHARE:.3f}",
            share <= ALLOWED_SHARE,
        ),
        Figure(
            "CPU-seconds of forward and backward",
            cpu["chunks"],
            "s",
            "all logits at once",
            cpu["whole"],
            cpu["chunks"] / cpu["whole"],
        ),
    ]
    for name, asked in (("log p", 1e-6), ("entropy", 1e-6), ("gradient", 1e-5)):
        worst = max(one[name] for one in apart)
        what = f"largest relative difference of {name}, in millionths"
        figures.append(Figure(what, worst * 1e6, "", asked=f"at most {asked * 1e6:g}", passed=worst <= asked))
    details = {
        way: [{k: run[k] for k in ("peak_mb", "cpu_s", "chunk")} for run in found]
        for way, found in runs.items()
    }
    report("log_prob_memory", figures, {"positions": positions, "hidden_size": 64, **details}, given)


def measured(way: str, positions: int, quick: bool) -> dict[str, Any]:
    """Run once in this process, which has done nothing before."""
    import time

    torch.set_num_threads(1)
    model = _model()
    chunk = 4 if quick else None  # so few positions would be held whole by default
    forward = PolicyForward(model, chunk if way == "chunks" else 0)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (4, positions // 4 + 1), generator=generator)
    weights = torch.randn(ids.shape, generator=generator)
    forward(ids[:1, :3], TEMPERATURE)[0].sum().backward()  # what a first call loads and allocates once
    model.zero_grad(set_to_none=True)
    forward.check()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew here
    held, begun = status("VmRSS"), time.process_time()
    log_p, entropy = forward(ids, TEMPERATURE)
    (log_p * weights).sum().backward()
    return {
        "cpu_s": time.process_time() - begun,
        "peak_mb": (status("VmHWM") - held) / 1e6,
        "chunk": forward.chunk_of(positions),
        "log p": log_p.detach().numpy(),
        "entropy": entropy.detach().numpy(),
        "gradient": {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None},
    }


def _model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def status(name: str) -> int:
    """Return a line of this process's /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {name}: this needs Linux")


def _apart(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """Return the largest difference over the largest value, of gradients that of the norms."""
    values = {name: abs(a[name] - b[name]).max() / abs(b[name]).max() for name in ("log p", "entropy")}

    def norm(values: Any) -> float:
        return float(torch.as_tensor(values).double().norm())

    gradients = [norm(a["gradient"][n] - g) / norm(g) for n, g in b["gradient"].items()]
    return {name: float(value) for name, value in values.items()} | {"gradient": max(gradients)}


if __name__ == "__main__":
    main()
