"""A whole step on a pretrained policy, SmolLM2-135M on GSM8K's questions, beside TRL's GRPOTrainer.

4 prompts of 8 rollouts of 64 tokens in float32 on one core, the same work on both sides, turn by turn: once
with the packaged solo prompt, once with the one that offers agents (nobody asks one). CPU-seconds decide.
The update also stands beside its bound: 6 x parameters x distinct tokens, at the rate that this machine's
matrix products reach between the steps of the same run.

`--policy DIR` is SmolLM2 as `aipo models get smollm2` writes it, `--problems FILE` holds GSM8K's rows.
Weights of half a gigabyte are read. Where TRL computes all 32 sequences in one pass it takes 17 GB with the
solo prompt, more with the other, and `--one-after-the-other` keeps the sides from being in memory together;
`--peer-batch 8`, TRL's own default, takes less and proves nothing on memory.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aipo.assembly.agents import build_protocol
from aipo.config.settings import Settings
from aipo.consult.prompts import system_prompt
from aipo.core.types import Condition
from measure import ROOT, Figure, Options, median_ratio, report
from step import measured, rounded
from step_work import NEVER, Work, write_problems

PROMPTS, ROLLOUTS, NEW_TOKENS, WARM_UP = 4, 8, 64, 1
MOST = {"solo": 0.40, "consulting": 0.30}
MOST_MEMORY, MOST_BOUND = 0.35, 1.35
TURN_END = "<|im_end|>"
GEMM = 1536
"""Rows and columns of the products that the machine's rate is measured with."""


def gemm_flops() -> float:
    """Return the floating-point operations a second of float32 products, the best of five."""
    a, b = torch.randn(GEMM, GEMM), torch.randn(GEMM, GEMM)
    taken = []
    for _ in range(5):
        began = time.process_time()
        a @ b
        taken.append(time.process_time() - began)
    return 2 * GEMM**3 / min(taken)


def never_ending(policy: Path, folder: Path) -> tuple[Any, int]:
    """Write a copy of the policy whose completions cannot end early; return its tokenizer and its size."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    tokens: Any = AutoTokenizer.from_pretrained(policy)
    tokens.add_special_tokens({"eos_token": NEVER})
    assert tokens.eos_token_id >= model.config.vocab_size, "the end must be no token of the model"
    # What the template puts behind an assistant's turn ends it too, on our side.
    whole = f"('{NEVER}' if message['role'] == 'assistant' else '{TURN_END}')"
    assert f"'{TURN_END}'" in tokens.chat_template
    tokens.chat_template = tokens.chat_template.replace(f"'{TURN_END}'", whole)
    for config in (model.config, model.generation_config):
        config.eos_token_id = None
    model.save_pretrained(folder / "policy")
    tokens.save_pretrained(folder / "policy")
    return tokens, sum(p.numel() for p in model.parameters())


def equally_long(tokens: Any, texts: list[str]) -> list[str]:
    """Return questions with the same number of tokens, the commonest one, so that nobody pads."""
    lengths = [len(tokens.encode(text, add_special_tokens=False)) for text in texts]
    length = Counter(lengths).most_common(1)[0][0]
    return [text for text, own in zip(texts, lengths, strict=True) if own == length][:PROMPTS]


def work_of(
    folder: Path, tokens: Any, questions: list[str], *, consulting: bool, peer_batch: int
) -> tuple[Work, int]:
    """Return the work and the number of a prompt's tokens."""
    enabled = {"agents": {"enabled": ["verify", "knowledge", "reasoning"]}} if consulting else {}
    protocol = build_protocol(Settings.model_validate(enabled))
    system = system_prompt(Condition.CONSULTING if consulting else Condition.SOLO, protocol, None)
    work = Work(
        folder=str(folder),
        new_tokens=NEW_TOKENS,
        capacity=0,
        prompts=PROMPTS,
        rollouts=ROLLOUTS,
        system=system,
        consulting=consulting,
        peer_batch=peer_batch,
    )
    write_problems(folder, questions)
    prompts = [tokens.apply_chat_template(chat, add_generation_prompt=True) for chat in work.chats()]
    longest = max(len(p["input_ids"]) for p in prompts)
    return Work(**{**_fields(work), "capacity": longest + NEW_TOKENS}), longest


def _fields(work: Work) -> dict[str, Any]:
    return {name: getattr(work, name) for name in Work.__dataclass_fields__}


def figures_of(
    prompt: str, tokens: int, steps: dict[str, list[dict[str, Any]]], bound_s: float, peer_batch: int
) -> list[Figure]:
    """Compare ours with TRL's, and our update with its bound."""
    what = f"step, SmolLM2-135M, {prompt} prompt of {tokens} tokens"
    ours = steps["aipo"]
    update_s = statistics.median(step["update_cpu_s"] for step in ours)
    of_bound = update_s / bound_s
    figures = [
        Figure(
            f"{what}: the update beside its bound",
            update_s,
            "CPU-s",
            "bound",
            bound_s,
            of_bound,
            f"at most {MOST_BOUND:g}",
            of_bound <= MOST_BOUND,
        )
    ]
    if "trl" not in steps:
        return figures
    theirs = steps["trl"]
    beside = f"TRL 1.16, passes of {peer_batch}" if peer_batch else "TRL 1.16"
    for key, clock, most in (("cpu_s", "CPU-s", MOST[prompt]), ("wall_s", "s on the wall", None)):
        a, b = [s[key] for s in ours], [s[key] for s in theirs]
        ratio = median_ratio(a, b)
        asked, passed = (f"at most {most:g}", ratio <= most) if most else ("", None)
        medians = statistics.median(a), statistics.median(b)
        figures.append(Figure(what, medians[0], clock, beside, medians[1], ratio, asked, passed))
    peaks = ours[-1]["peak_mb"], theirs[-1]["peak_mb"]
    ratio = peaks[0] / peaks[1]
    asked, passed = ("", None) if peer_batch else (f"at most {MOST_MEMORY:g}", ratio <= MOST_MEMORY)
    memory = (peaks[0], "MB", beside, peaks[1], ratio, asked, passed)
    return [*figures, Figure(f"{what}: peak memory, whole", *memory)]


def main() -> None:
    """Measure."""
    peer = ROOT / "build" / "parity-venv" / "bin" / "python"
    parser = argparse.ArgumentParser(prog="benchmarks/step_smollm2.py", description=__doc__)
    parser.add_argument("--policy", type=Path, default=os.environ.get("AIPO_SMOLLM2"), required=False)
    parser.add_argument("--problems", type=Path, default=ROOT.parent / "shared" / "data" / "gsm8k_test.jsonl")
    parser.add_argument(
        "--peer", default=str(peer) if peer.exists() else "", help="python with TRL; '': without"
    )
    parser.add_argument(
        "--peer-batch", type=int, default=0, help="sequences of a pass of TRL's; 0: all 32, as ours may have"
    )
    parser.add_argument("--one-after-the-other", action="store_true", help="not turn by turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", nargs="+", choices=list(MOST), default=list(MOST))
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmarks")
    given = parser.parse_args()
    if given.policy is None:
        parser.error(
            "--policy: name SmolLM2's folder, or set AIPO_SMOLLM2; `aipo models get smollm2` writes it"
        )
    torch.set_num_threads(1)
    commands = {"aipo": sys.executable, **({"trl": given.peer} if given.peer else {})}
    rows = [json.loads(line) for line in given.problems.read_text().splitlines()]
    figures: list[Figure] = []
    details: dict[str, Any] = {
        "warm_up_steps": WARM_UP,
        "sequences": PROMPTS * ROLLOUTS,
        "peer_batch": given.peer_batch,
        "one_after_the_other": given.one_after_the_other,
    }
    with tempfile.TemporaryDirectory(prefix="aipo-step-") as name:
        folder = Path(name)
        tokens, parameters = never_ending(given.policy, folder)
        questions = equally_long(tokens, [row["question"] for row in rows])
        for prompt in given.prompts:
            work, longest = work_of(
                folder, tokens, questions, consulting=prompt == "consulting", peer_batch=given.peer_batch
            )
            rates: list[float] = []

            def clock_products(rates: list[float] = rates) -> None:
                rates.append(gemm_flops())

            steps = measured(
                commands, work, given.repeats, WARM_UP, clock_products, not given.one_after_the_other
            )
            distinct = PROMPTS * longest + PROMPTS * ROLLOUTS * NEW_TOKENS
            bound_s = 6 * parameters * distinct / statistics.median(rates)
            figures += figures_of(prompt, longest, steps, bound_s, given.peer_batch)
            details[prompt] = {
                "parameters": parameters,
                "distinct_tokens": distinct,
                "gemm_gflops": [round(rate / 1e9, 1) for rate in rates],
                "steps": {side: rounded(made) for side, made in steps.items()},
            }
            shutil.rmtree(folder / "run", ignore_errors=True)
            report("step_smollm2", figures, details, Options(False, given.repeats, given.output, given.peer))


if __name__ == "__main__":
    main()
