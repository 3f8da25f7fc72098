"""`train.compile` on SmolLM2-135M: CPU-seconds of a pass, forward and backward, plain and compiled.

One thread, 4 rows of 128 tokens, padded, through the trainer's own forward pass; passes take turns. The first
compiled pass, which compiles, stands by itself, without what the C++ compiler's processes take. SmolLM2 is
read from the folder in AIPO_SMOLLM2.

Not measured here: a GPU, packed rows, and a second shape, for which dynamic shapes need no compilation.
"""

import os
import statistics
from copy import deepcopy
from functools import partial

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from aipo.training.compiling import compile_layers
from aipo.training.log_probs import PolicyForward
from measure import Clock, Figure, alternating, clocked, median_ratio, options, policy, report

ROWS, TOKENS = 4, 128


def step(forward: PolicyForward, ids: torch.Tensor) -> None:
    """Forward and backward."""
    log_p, _ = forward(ids, 1.0)
    (-log_p.mean()).backward()
    forward.zero_grad(set_to_none=True)


def main(arguments: list[str] | None = None) -> None:
    """Measure."""
    given = options("compiled", arguments)
    folder = os.environ.get("AIPO_SMOLLM2", "")
    if not (given.quick or folder):
        raise SystemExit("AIPO_SMOLLM2 is not set; name SmolLM2's folder (aipo models get smollm2)")
    plain: PreTrainedModel = policy(quick=True)
    if not given.quick:
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    compiled = deepcopy(plain)
    compile_layers(compiled)
    ids = torch.arange(ROWS * TOKENS).view(ROWS, TOKENS) * 7919 % int(plain.config.vocab_size)
    steps = {
        "plain": partial(clocked, partial(step, PolicyForward(plain.train()), ids)),
        "compiled": partial(clocked, partial(step, PolicyForward(compiled.train()), ids)),
    }
    first = {name: run() for name, run in steps.items()}
    taken: dict[str, list[Clock]] = alternating(steps, given.repeats or 3)
    cpu = {name: [clock.cpu_s for clock in clocks] for name, clocks in taken.items()}
    medians = {name: statistics.median(values) for name, values in cpu.items()}
    name = "tiny" if given.quick else "SmolLM2-135M"
    ratio = median_ratio(cpu["compiled"], cpu["plain"])
    figures = [
        Figure(
            f"a pass of {name}, {ROWS} x {TOKENS} tokens, layers compiled",
            medians["compiled"],
            "CPU-s",
            "plain",
            medians["plain"],
            ratio,
        ),
        Figure(
            "the first pass, with the compilation",
            first["compiled"].cpu_s,
            "CPU-s",
            "plain",
            first["plain"].cpu_s,
            first["compiled"].cpu_s / first["plain"].cpu_s,
        ),
    ]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    report("compiled", figures, {"graphs": graphs, "cpu_s": cpu}, given)


if __name__ == "__main__":
    main()
