"""Policies built on the spot, and one way to run `aipo` on them: no downloads, and real transformers folders.

`counting_policy`: the tiny leg-counting policy after a short warm start; now and then it is right, and it
consults.

`random_policy`: random-weight Qwen2.5 or Llama 3 with a byte-level BPE tokenizer, as a user's own model
would come.

Policies are built once a test session; workers of pytest-xdist share them.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

import pytest
import torch
from click.testing import Result
from tokenizers import normalizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from typer.testing import CliRunner

from aipo.cli.main import app
from aipo.config.toml import toml_text
from support.tokenizers import byte_level_backend

Architecture = Literal["qwen2.5", "llama3"]

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
COUNTING_RECIPE = {
    "run": {"threads": 1},
    "task": {"name": "leg_counting"},
    "agents": {"backend": "oracle"},
    "consult": {"max_feedback_tokens": 12, "consulting_prompt": "agents", "solo_prompt": "alone"},
    "rollout": {"rollouts_per_prompt": 8, "max_prompt_tokens": 24, "max_response_tokens": 64},
    "train": {
        "steps": 3,
        "prompts_per_step": 4,
        "minibatches_per_step": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "stratum_mix": {"easy": 0.75, "hard": 0.25},
    },
    "evaluate": {"at_steps": [], "problems": 4, "samples_per_problem": 4, "pass_at": [1, 4]},
    "warmstart": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "steps": 250,
        "sequences_per_step": 32,
        "learning_rate": 1e-2,
    },
}
TAGS = [f"<{s}{name}>" for name in ("verify", "knowledge", "reasoning", "feedback") for s in ("", "/")]
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WRITTEN_HERE = [
    {"question": f"Ann has {a} pens and buys {b} more. How many?", "answer": f"{a} + {b}\n#### {a + b}"}
    for a in range(2, 22)
    for b in range(3, 13)
]


def run_cli(*arguments: str | Path) -> Result:
    """Run `aipo` in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: str | Path) -> Result:
    """Run `aipo` in this process and require exit code 0."""
    result = run_cli(*arguments)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result


def start_cli(*arguments: str | Path) -> "subprocess.Popen[bytes]":
    """Start `aipo` in a session of its own, listening to Ctrl-C also where a background shell ignores it."""
    command = [sys.executable, "-m", "aipo", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def counting_recipe(folder: Path, **sections: dict[str, object]) -> Path:
    """Write the recipe of a short leg-counting run, with sections changed."""
    table = {name: dict(section) for name, section in COUNTING_RECIPE.items()}
    for name, section in sections.items():
        table[name] = table.get(name, {}) | section
    path = folder / "counting.toml"
    path.write_text(toml_text(table))
    return path


def counting_policy(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tiny policy, made by `aipo warmstart`."""
    return _built_once(factory, "counting", _make_counting_policy)


def random_policy(factory: pytest.TempPathFactory, architecture: Architecture) -> Path:
    """Return the folder of a policy that knows nothing."""
    return _built_once(factory, architecture, lambda folder: _make_random_policy(folder, architecture))


def gsm8k_rows(number: int, split: Literal["train", "test"] = "train") -> list[dict[str, object]]:
    """Return the first rows of GSM8K, or rows written here where the data is not at hand."""
    path = SHARED_DATA / f"gsm8k_{split}.jsonl"
    if not path.exists():
        print(f"{path} is not there: problems written in tests/support/policies.py take its place")
        start = 0 if split == "train" else 100
        return list(islice(WRITTEN_HERE, start, start + number))
    with path.open() as file:
        return [json.loads(line) for line in islice(file, number)]


def byte_level_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer as Qwen2.5's, trained on `texts`; ChatML, each tag a special token.

    It splits words as Qwen2.5 does: transformers 5 makes any tokenizer beside a `qwen2` model do so.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = byte_level_backend(texts, 600, special, QWEN_SPLIT, normalizers.NFC())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", *TAGS],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _make_counting_policy(folder: Path) -> None:
    output = folder / "warmstart"
    succeed("warmstart", counting_recipe(folder), f"run.output={output}")
    (output / "policy").rename(folder / "policy")


def _make_random_policy(folder: Path, architecture: Architecture) -> None:
    texts = [f"{row['question']}\n{row['answer']}" for row in gsm8k_rows(300)]
    tokenizer = byte_level_tokenizer(texts)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    llama3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if architecture == "qwen2.5":
            model = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
        else:
            model = LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=llama3))
    model.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")


def _built_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a policy's folder; the first worker that asks makes it, the others wait."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / f"policy-{name}"
    with _locked(shared / f"policy-{name}.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "done").touch()
    return folder / "policy"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
