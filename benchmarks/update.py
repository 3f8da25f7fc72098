"""Our update alone beside a bare forward and backward pass over the same tokens, unpadded.

The rows are a GRPO step's: prompts of 32 tokens and completions of
8 to 256, each with an advantage. Ours is `Updater.apply` as the trainer builds it: collating, micro-batches
with their padding, entropy, objective, records' sums, guards, clipping, AdamW. Bare is a forward pass,
log-softmax, gather, mean, backward, in the cheaper of two ways that pad nothing: each row by itself, and all
rows joined to one whose attention is computed row by row (what FlashAttention's varlen kernels do on a GPU).
CPU-seconds of one thread, turn by turn.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel

from aipo.config.settings import Settings
from aipo.core.advantages import Advantage
from aipo.core.batch import Row, weighted_rows
from aipo.core.objective import ObjectiveSettings
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source
from aipo.training.guards import Guards
from aipo.training.log_probs import PolicyForward
from aipo.training.update import Updater, UpdateSettings
from measure import VOCABULARY, Figure, alternating, clocked, median_ratio, options, report, words
from step_work import SHAPES, TINY, model_of

PROMPT_TOKENS, SHORTEST, LONGEST = 32, 8, 256
ROWS = {"0.43 M": 32, "3.2 M": 32, "25 M": 8}
REPEATS = {"0.43 M": 9, "3.2 M": 7, "25 M": 3}
MOST = 1.1
LEARNING_RATE = 1e-7
PACKED = "packed_rows"
JOINTS: list[int] = []
"""Where the rows of the pass under way end in the joined one; for `_packed_attention`."""


def model_named(name: str) -> PreTrainedModel:
    """Return the model of step.py of that size."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(model_of(SHAPES.get(name, TINY)))
    return model.eval()


@torch.no_grad()
def rows_of(model: PreTrainedModel, number: int, longest: int) -> list[Row]:
    """Return rows whose completions spread evenly over the lengths, shuffled, sampled with the model's p."""
    rng, streams = Random(1), []
    lengths = [SHORTEST + (longest - SHORTEST) * i // (number - 1) for i in range(number)]
    rng.shuffle(lengths)
    for length in lengths:
        ids = words(rng, PROMPT_TOKENS + length)
        log_p, _ = PolicyForward(model)(torch.tensor([ids]), 1.0)
        sampled = tuple(log_p[0, PROMPT_TOKENS:].tolist())
        prompt = Segment(Source.PROMPT, ids[:PROMPT_TOKENS])
        streams.append(TokenStream((prompt, Segment(Source.POLICY, ids[PROMPT_TOKENS:], sampled))))
    advantages = [Advantage(1.0 if i % 2 else -1.0, 0.0) for i in range(number)]
    return weighted_rows(streams, advantages, "sequence_mean", feedback_trained=False)


def updater_of(model: PreTrainedModel, guarded: bool = True) -> Updater:
    """Return what the trainer would build."""
    settings, accelerator = Settings(), Accelerator(cpu=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    prepared, wrapped = accelerator.prepare(PolicyForward(model), optimiser)
    t = settings.train
    wanted = UpdateSettings(
        temperature=1.0, microbatch_tokens=t.microbatch_tokens, max_grad_norm=t.max_grad_norm, pad_id=0
    )
    guard = Guards(settings) if guarded else None
    return Updater(accelerator, prepared, wrapped, wanted, guard)


def alone(model: PreTrainedModel, rows: Sequence[torch.Tensor]) -> None:
    """Forward and backward, each row by itself."""
    tokens = sum(len(row) - 1 for row in rows)
    for row in rows:
        logits = model(input_ids=row.unsqueeze(0), use_cache=False).logits[0, :-1]
        log_p = torch.log_softmax(logits, -1).gather(-1, row[1:].unsqueeze(-1))
        (-log_p.sum() / tokens).backward()


def packed(model: PreTrainedModel, rows: Sequence[torch.Tensor]) -> None:
    """Forward and backward of all rows joined, none of which sees another."""
    JOINTS[:] = [len(row) for row in rows]
    ids, positions = torch.cat(list(rows)), torch.cat([torch.arange(len(row)) for row in rows])
    model.set_attn_implementation(PACKED)
    forward: Any = model
    logits = forward(input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False).logits[
        0, :-1
    ]
    log_p = torch.log_softmax(logits, -1).gather(-1, ids[1:].unsqueeze(-1)).squeeze(-1)
    inside = positions[1:] > 0
    (-log_p[inside].mean()).backward()
    model.set_attn_implementation("sdpa")


def _packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    groups = query.shape[1] // key.shape[1]
    parts = []
    split = (states.split(JOINTS, dim=2) for states in (query, key, value))
    for q, k, v in zip(*split, strict=True):
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        of_row = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        parts.append(of_row.transpose(1, 2))
    return torch.cat(parts, dim=1), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(PACKED, _packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)


def gradient_of(model: PreTrainedModel, run: Callable[[], object]) -> torch.Tensor:
    """Return the whole gradient that a bare way leaves."""
    run()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


def measured(name: str, quick: bool, repeats: int) -> tuple[list[Figure], dict[str, Any]]:
    """Measure one size."""
    model = model_named(name)
    rows = rows_of(model, 4 if quick else ROWS[name], 16 if quick else LONGEST)
    ids = [torch.tensor(row.stream.ids) for row in rows]
    updater, objective = updater_of(model), ObjectiveSettings()

    def bare(way: Callable[[PreTrainedModel, Sequence[torch.Tensor]], None]) -> Callable[[], object]:
        def run() -> None:
            way(model, ids)
            model.zero_grad(set_to_none=True)

        return run

    gradients = [gradient_of(model, lambda way=way: way(model, ids)) for way in (alone, packed)]  # type: ignore[misc]
    apart = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    assert apart < 1e-4, f"the two bare ways compute different gradients: {apart:.2g}"
    ways = {"ours": lambda: updater.apply([rows], objective), "alone": bare(alone), "packed": bare(packed)}
    for run in ways.values():  # whatever is built on first use
        run()
    assert updater.steps_taken == 1, "a guard has left the mini-batch out"
    taken = alternating({way: lambda run=run: clocked(run) for way, run in ways.items()}, repeats)  # type: ignore[misc]
    cpu = {way: [clock.cpu_s for clock in clocks] for way, clocks in taken.items()}
    medians = {way: statistics.median(seconds) for way, seconds in cpu.items()}
    cheaper, other = sorted(("alone", "packed"), key=lambda way: medians[way])
    names = {"alone": "bare, each row alone", "packed": "bare, rows packed"}
    tokens = sum(map(len, ids))
    figures = []
    for way, most in ((cheaper, MOST), (other, None)):
        ratio = median_ratio(cpu["ours"], cpu[way])
        asked = f"at most {most:g} x the cheaper bare one" if most and not quick else ""
        told = (names[way], medians[way], ratio, asked, ratio <= MOST if asked else None)
        figures.append(Figure(f"update, {name}, {tokens:,} tokens", medians["ours"], "CPU-s", *told))
    rounded = {
        w: [{"wall_s": round(c.wall_s, 4), "cpu_s": round(c.cpu_s, 4)} for c in taken[w]] for w in taken
    }
    return figures, {"tokens": tokens, "rows": len(rows), "gradients_apart": apart, **rounded}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure."""
    given = options("update", arguments)
    figures: list[Figure] = []
    details: dict[str, Any] = {"vocabulary": VOCABULARY}
    for name in ["tiny"] if given.quick else list(ROWS):
        repeats = given.repeats or (2 if given.quick else REPEATS[name])
        found, details[name] = measured(name, given.quick, repeats)
        figures += found
    report("update", figures, details, given)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"{time.perf_counter() - started:.0f} s in all")
