"""One real vLLM server on the CPU for a session, on a tiny random-weight Qwen3 made on the spot."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from aipo.config.toml import toml_text
from aipo.engines.vllm_server import ServerPlan, VllmServer
from support.policies import byte_level_tokenizer, gsm8k_rows

COMMAND = os.environ.get("AIPO_VLLM_COMMAND", "")
KV_CACHE = {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB; the default, a share of the memory, fails at start
ARGUMENTS = ["--enforce-eager", "--max-num-seqs", "64", "--no-enable-chunked-prefill"]
START_TIMEOUT_S = 500.0  # 35 s on two quiet cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(1200))  # the first one waits for the server
            if not COMMAND:
                item.add_marker(
                    pytest.mark.skip(reason="no vLLM here: scripts/vllm.sh makes its environment")
                )


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM's CPU attention takes head sizes that are multiples of 32 only."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = byte_level_tokenizer([f"{row['question']}\n{row['answer']}" for row in gsm8k_rows(300)])
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    ids = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    torch.manual_seed(1)
    config = Qwen3Config(vocab_size=len(tokenizer), max_position_embeddings=2048, **shape, **heads, **ids)
    config.initializer_range = 0.1
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def server(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    log = tmp_path_factory.mktemp("server") / "policy-server.log"
    command = (COMMAND, "serve", str(policy), "--dtype", "float32", "--max-model-len", "2048", *ARGUMENTS)
    server = VllmServer(
        ServerPlan(command=command, log=log, start_timeout_s=START_TIMEOUT_S, environment=KV_CACHE)
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def recipe(tmp_path: Path, policy: Path) -> Path:
    """Problems from a file, one Knowledge Agent, a server that aipo starts; a test overrides the rest."""
    files = {}
    for split, number in (("train", 12), ("test", 3)):
        files[split] = tmp_path / f"{split}.jsonl"
        files[split].write_text("".join(json.dumps(row) + "\n" for row in gsm8k_rows(number, split)))
    table: dict[str, Any] = {
        "run": {"output": str(tmp_path / "run")},
        "policy": {"model": str(policy)},
        "engine": {
            "name": "vllm",
            "start": True,
            "command": [COMMAND, "serve"],
            "arguments": ARGUMENTS,
            "environment": KV_CACHE,
            "start_timeout_s": START_TIMEOUT_S,
        },
        "task": {
            "name": "jsonl",
            "train_file": str(files["train"]),
            "test_file": str(files["test"]),
            "problem_field": "question",
            "answer_after": "####",
        },
        "agents": {"enabled": ["knowledge"]},
        "consult": {"max_feedback_tokens": 32},
        "rollout": {"rollouts_per_prompt": 4, "max_prompt_tokens": 1500, "max_response_tokens": 120},
        "train": {
            "steps": 2,
            "prompts_per_step": 2,
            "minibatches_per_step": 1,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "checkpoint_every_steps": 1,
        },
        "evaluate": {"problems": 2, "samples_per_problem": 2, "pass_at": [1]},
    }
    path = tmp_path / "vllm.toml"
    path.write_text(toml_text(table))
    return path
