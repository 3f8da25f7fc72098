"""What a run takes of the machine's memory beside what `aipo doctor` says beforehand, for three policies.

Each run is `aipo.train` in a process of its own, two whole steps, rollouts as long as the recipe allows. Its
peak (VmHWM) less what the process held before, with everything imported, stands beside the estimate.
SmolLM2-135M-Instruct is read from the folder in AIPO_SMOLLM2; the two others have random weights.

Not measured here: a GPU, several ranks, and what Python and torch take by themselves.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from log_prob_memory import status
from measure import VOCABULARY, Figure, options, report, tokenizer

GB = 1e9
WITHIN = 0.2
AT_ONCE = 2
"""Processes: what one takes does not depend on the others."""
NEVER = "<|never|>"
SEED = 10
PROBLEM = "Count upwards in words, from one to one thousand, and leave no number out. Begin at"
MARK = "MEASURED "


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A policy, and how much it writes."""

    name: str
    config: dict[str, Any] | None
    """Of Qwen2Config; None: SmolLM2's own folder."""
    prompts: int
    rollouts: int
    response_tokens: int
    microbatch_tokens: int
    settings: tuple[str, ...] = ()


TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SMALL = {"hidden_size": 384, "num_hidden_layers": 10, "num_attention_heads": 6, "intermediate_size": 1536}
QWEN = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "intermediate_size": 4864}
RUNS = (
    Run(
        name="25 M",
        config={**SMALL, "num_key_value_heads": 2, "vocab_size": VOCABULARY},
        prompts=4,
        rollouts=8,
        response_tokens=128,
        microbatch_tokens=2048,
    ),
    Run(name="SmolLM2-135M", config=None, prompts=4, rollouts=8, response_tokens=96, microbatch_tokens=1024),
    Run(
        name="Qwen2.5-0.5B's shape",
        config={**QWEN, "num_key_value_heads": 2, "vocab_size": 151_936},
        prompts=2,
        rollouts=4,
        response_tokens=48,
        microbatch_tokens=256,
    ),
)
QUICK = (
    Run(
        name="tiny",
        config={**TINY, "num_key_value_heads": 2, "vocab_size": VOCABULARY},
        prompts=2,
        rollouts=4,
        response_tokens=8,
        microbatch_tokens=512,
    ),
)


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the record."""
    given = options("memory", arguments)
    figures, details = [], {}
    runs = QUICK if given.quick else RUNS
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        measured = list(pool.map(_in_a_process, runs))
    for run, found in zip(runs, measured, strict=True):
        ratio = found["estimated"]["peak"] / found["measured"]
        what = f"peak of a run, {run.name}"
        passed = abs(ratio - 1) <= WITHIN
        figures.append(
            Figure(
                what,
                found["measured"] / GB,
                "GB",
                "estimated",
                found["estimated"]["peak"] / GB,
                ratio,
                f"within {WITHIN:.0%}",
                passed,
            )
        )
        details[run.name] = found
    report("memory", figures, details, given)


def _in_a_process(run: Run) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="aipo-memory-") as folder:
        settings = json.dumps(_prepared(Path(folder), run))
        done = subprocess.run(
            [sys.executable, __file__, "--one", settings], capture_output=True, text=True, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        if done.returncode or not lines:
            raise RuntimeError(f"{run.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(lines[0].removeprefix(MARK))
        return found


def _prepared(folder: Path, run: Run) -> dict[str, Any]:
    """Write what is read; return the settings."""
    policy = os.environ.get("AIPO_SMOLLM2", "")
    if run.config is not None:
        policy = str(folder / "policy")
        tokens = tokenizer(end=None)
        tokens.add_special_tokens({"eos_token": NEVER})  # the model has it not, so no rollout ends early
        ids: dict[str, Any] = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(Qwen2Config(tie_word_embeddings=True, **run.config, **ids))
        model.save_pretrained(policy)
        tokens.save_pretrained(policy)
    elif not policy:
        raise SystemExit(
            "AIPO_SMOLLM2 is not set; name the folder of SmolLM2-135M-Instruct (aipo models get)"
        )
    rows = [{"problem": f"{PROBLEM} {number}.", "answer": "none"} for number in range(100, 100 + run.prompts)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "run": {"output": str(folder / "run"), "seed": SEED, "threads": 1, "device": "cpu"},
        "policy": {"model": policy},
        "task": {"name": "jsonl", "train_file": str(folder / "problems.jsonl"), "match": "exact"},
        "agents": {"enabled": ()},
        "consult": {"solo_prompt": "", "consulting_prompt": ""},
        "rollout": {
            "rollouts_per_prompt": run.rollouts,
            "max_prompt_tokens": _longest(policy, [row["problem"] for row in rows]),
            "max_response_tokens": run.response_tokens,
            "slots": run.prompts * run.rollouts,
        },
        "algorithm": {"name": "grpo", "coefficient": "masked", "stripped_copies": False},
        "train": {
            "steps": 2,
            "prompts_per_step": run.prompts,
            "minibatches_per_step": 1,
            "microbatch_tokens": run.microbatch_tokens,
            "learning_rate": 1e-5,
            "reward": "random",
        },
    }


def _longest(policy: str, problems: list[str]) -> int:
    """Return the tokens of the longest prompt, so that the recipe allows what comes and no more."""
    tokens = AutoTokenizer.from_pretrained(policy)
    chats = [[{"role": "user", "content": problem}] for problem in problems]
    texts = [tokens.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    return max(len(tokens.encode(text, add_special_tokens=False)) for text in texts)


def one(settings: str) -> None:
    """Train in this process, and print what it took."""
    import aipo
    from aipo.assembly.memory import recipe_memory
    from aipo.config.settings import Settings

    wanted = Settings.model_validate(json.loads(settings))
    need = recipe_memory(wanted)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew here
    held = status("VmRSS")
    aipo.train(wanted)
    found = {
        "measured": status("VmHWM") - held,
        "held_before": held,
        "estimated": {name: getattr(need, name) for name in need.__slots__} | {"peak": need.peak},
    }
    print(MARK + json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2])
    else:
        main()
