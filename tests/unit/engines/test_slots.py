"""The key-value cache has memory for what is used, and none while nobody samples; no bit depends on it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from transformers import LlamaConfig, PreTrainedModel

from aipo.engines import slots
from aipo.engines.base import Completion, GenerationRequest
from aipo.engines.transformers import TransformersEngine
from support.engines import random_model
from support.tokenizers import byte_level_bpe

TOKENIZER = byte_level_bpe()
CONFIG = LlamaConfig(
    vocab_size=len(TOKENIZER),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=1,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)


def engine_of(rows: int = 4, capacity: int = 160) -> TransformersEngine:
    model: PreTrainedModel = random_model(CONFIG)
    return TransformersEngine(model, TOKENIZER, slots=rows, capacity=capacity)


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def write(engine: TransformersEngine, session: str, prompt: Sequence[int], seed: int) -> Completion:
    never = ((TOKENIZER.eos_token_id,),)
    request = GenerationRequest(
        session=session, prefix_ids=tuple(prompt), max_new_tokens=20 + seed, banned_sequences=never, seed=seed
    )
    completion = await engine.generate(request)
    await engine.release(session)
    return completion


async def write_many(engine: TransformersEngine) -> list[Completion]:
    """Ragged rollouts, all at once; two share a prompt."""
    prompts = [range(20, 31 + 3 * (i // 2)) for i in range(8)]
    return await asyncio.gather(*(write(engine, f"s{i}", prompts[i], i) for i in range(8)))


def test_memory_grows_with_what_is_used_and_growing_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "BLOCK_TOKENS", 4)  # rows and columns grow all along
    grown = engine_of(rows=64, capacity=4096)
    written = run(write_many(grown))
    monkeypatch.setattr(slots, "BLOCK_TOKENS", 160)
    whole = engine_of(rows=8)
    for a, b in zip(written, run(write_many(whole)), strict=True):
        assert a.ids == b.ids and a.log_probs == b.log_probs
    assert grown.cache_bytes < whole.cache_bytes  # which has 8 x 160 positions, not 64 x 4,096


def test_memory_is_lent_between_steps_and_never_while_a_session_is_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "KEPT_BYTES", 0)
    engine = engine_of()
    before = run(write(engine, "s", [5, 6, 7], 0))
    engine.free()
    assert engine.cache_bytes == 0
    assert run(write(engine, "s", [5, 6, 7], 0)).log_probs == before.log_probs

    async def open_session() -> None:
        await engine.generate(
            GenerationRequest(session="open", prefix_ids=(5, 6, 7), max_new_tokens=4, seed=0)
        )
        engine.free()

    run(open_session())
    assert engine.cache_bytes > 0
