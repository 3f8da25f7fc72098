"""Tiny policies that call tools: random weights, taught to call Knowledge and to answer after its reply."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from aipo.config.toml import toml_text
from aipo.consult.prompts import chat_prompt_ids
from aipo.consult.tool_template import tool_texts
from aipo.engines.stops import ends_of
from support.tool_templates import tool_tokenizer

PROBLEMS = {
    "train": "How many legs have 2 spiders?",
    "validation": "How many legs have 4 dogs?",
    "test": "How many legs have 8 hens?",
}
CONSULTING, SOLO = "ask", "alone"
_STEPS, _TAUGHT_LOSS = 200, 0.05
_SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


def tool_recipe(folder: Path, family: str, backend: str) -> Path:
    """Write the recipe of a short run with tool calls, its problems and its policy; return the recipe."""
    files = {}
    for split, problem in PROBLEMS.items():
        rows = [{"problem": problem, "answer": "16", "id": f"{split}-{i}"} for i in range(4)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[f"{split}_file"] = str(folder / f"{split}.jsonl")
    table = {
        "run": {"output": str(folder / "run"), "threads": 1},
        "policy": {"model": str(folder / "policy")},
        "task": {"name": "jsonl", **files},
        "agents": {"enabled": ["knowledge"], "backend": backend},
        "consult": {
            "format": "tools",
            "consulting_prompt": CONSULTING,
            "solo_prompt": SOLO,
            "max_feedback_tokens": 16,
        },
        "rollout": {"rollouts_per_prompt": 4, "max_prompt_tokens": 512, "max_response_tokens": 160},
        "train": {
            "steps": 2,
            "prompts_per_step": 2,
            "minibatches_per_step": 1,
            "learning_rate": 1e-4,
            "warmup_steps": 1,
            "checkpoint_every_steps": 1,
        },
        "evaluate": {"at_steps": [], "problems": 2, "samples_per_problem": 2, "pass_at": [1, 2]},
    }
    path = folder / "tools.toml"
    path.write_text(toml_text(table))
    return path


def make_tool_policy(folder: Path, family: str, tools: str) -> Path:
    """Write a policy of the family `qwen` or `llama`; `tools` is what the template is to offer."""
    tokenizer = tool_tokenizer(family)
    config, build = (Qwen2Config, Qwen2ForCausalLM) if family == "qwen" else (LlamaConfig, LlamaForCausalLM)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build(config(**_SHAPE | ids, vocab_size=len(tokenizer), bos_token_id=None))
        loss = _teach(model, tokenizer, tools)
    assert loss < 0.3, f"the tiny policy has not learnt to call: loss {loss:.2f}"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _teach(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, tools: str) -> float:
    pairs = list(_lessons(tokenizer, tools))
    longest = max(len(ids) for ids, _ in pairs)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[*i, *[pad] * (longest - len(i))] for i, _ in pairs])
    labels = torch.tensor([[*t, *[-100] * (longest - len(t))] for _, t in pairs])
    mask = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i, _ in pairs])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(_STEPS):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        if loss.item() < _TAUGHT_LOSS:
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return float(loss.detach())


def _lessons(tokenizer: PreTrainedTokenizerFast, tools: str) -> Iterator[tuple[list[int], list[int]]]:
    """Yield token ids and labels: a turn with a call, with its reply and the answer; a turn alone."""
    texts = tool_texts(tokenizer, ("knowledge",), ends_of(None, tokenizer))
    reply, end = texts.replies["knowledge"], str(tokenizer.eos_token)
    call = texts.written("knowledge", "legs?")
    before = end + reply.ended if not texts.closing else reply.before
    own = end if not texts.closing else ""

    def lesson(prompt: list[int], *pieces: tuple[str, bool]) -> tuple[list[int], list[int]]:
        ids, labels = list(prompt), [-100] * len(prompt)
        for text, learnt in pieces:
            new = tokenizer.encode(text, add_special_tokens=False)
            ids += new
            labels += new if learnt else [-100] * len(new)
        return ids, labels

    right, wrong = (f"so \\boxed{{{number}}}{end}" for number in (16, 8))
    inserted = before.removeprefix(own) + "8 8" + reply.after
    for problem in PROBLEMS.values():
        asked = chat_prompt_ids(tokenizer, CONSULTING, problem, (), tools=tools)
        alone = chat_prompt_ids(tokenizer, SOLO, problem, ())
        yield lesson(asked, (call + own, True), (inserted, False), (right, True))
        yield lesson(alone, (right, True))
        yield lesson(alone, (wrong, True))
