"""The in-process engine says what a plain forward pass says, whoever decodes beside a row or waits.

Models are real and tiny with random weights; log-probabilities are compared with a full forward in float32.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    BambaConfig,
    FalconH1Config,
    Gemma3TextConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from aipo.core.types import StopReason
from aipo.engines.base import Completion, EngineError, GenerationRequest, Sampling
from aipo.engines.slots import SlotCache
from aipo.engines.transformers import LOCKSTEP_TOKENS, TransformersEngine
from support.engines import random_model, reciting_model
from support.tokenizers import byte_level_bpe

TOKENIZER = byte_level_bpe()
VOCABULARY = len(TOKENIZER)
END = TOKENIZER.eos_token_id
NO_END = ((END,),)
SHORT, LONG = tuple(range(40, 40 + LOCKSTEP_TOKENS - 5)), tuple(range(50, 50 + LOCKSTEP_TOKENS + 9))
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "qwen3": Qwen3Config(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "llama": LlamaConfig(**SHAPE | {"num_key_value_heads": 1, "tie_word_embeddings": False}),
    "mistral, sliding": MistralConfig(**SHAPE, sliding_window=7),
    "qwen2, sliding and full": Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "gemma3, sliding and full": Gemma3TextConfig(
        **SHAPE | {"num_hidden_layers": 3, "pad_token_id": 0},
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=8,
    ),
}


def llama() -> PreTrainedModel:
    return random_model(CONFIGS["llama"])


def engine_of(model: PreTrainedModel, slots: int = 4, capacity: int = 160) -> TransformersEngine:
    return TransformersEngine(model, TOKENIZER, slots=slots, capacity=capacity)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run within a bound: what should not hang fails instead."""
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def ask(session: str, ids: Sequence[int], new: int = 6, **more: Any) -> GenerationRequest:
    return GenerationRequest(
        session=session, prefix_ids=tuple(ids), max_new_tokens=new, **{"banned_sequences": NO_END, **more}
    )


class Written:
    """What one session wrote: all ids, and the log-probability of those at `places`."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.ids = list(prompt)
        self.places: list[int] = []
        self.log_probs: list[float] = []

    def add(self, completion: Completion) -> None:
        self.places += range(len(self.ids), len(self.ids) + len(completion.ids))
        self.ids += completion.ids
        self.log_probs += completion.log_probs


async def write(
    engine: TransformersEngine,
    session: str,
    prompt: Sequence[int],
    inserts: Sequence[Sequence[int]] = (SHORT, LONG),
    **more: Any,
) -> Written:
    """Generate, insert, generate, ... and release."""
    written = Written(prompt)
    written.add(await engine.generate(ask(session, written.ids, **more)))
    for insert in inserts:
        written.ids += insert
        written.add(await engine.generate(ask(session, written.ids, **more)))
    await engine.release(session)
    return written


def true_log_probs(model: PreTrainedModel, written: Written) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([written.ids]), use_cache=False).logits[0]
    log_p = logits.index_fill(-1, torch.tensor(NO_END[0]), -torch.inf).log_softmax(-1)
    return [float(log_p[place - 1, written.ids[place]]) for place in written.places]


async def write_many(engine: TransformersEngine, number: int) -> list[Written]:
    """Write several ragged rollouts at once: two prompts, and inserts of different lengths."""
    prompts = [tuple(range(20, 31)), tuple(range(25, 60))]
    return await asyncio.gather(
        *(
            write(
                engine, f"s{i}", prompts[i % 2], [SHORT[: 1 + i % 5], LONG[: 12 + i], SHORT[i % 3 :]], seed=i
            )
            for i in range(number)
        )
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_are_those_of_a_plain_forward_pass(name: str, attention: str) -> None:
    model = random_model(CONFIGS[name], attention)
    for written in run(write_many(engine_of(model, slots=3), 5)):
        assert written.log_probs == pytest.approx(true_log_probs(model, written), abs=1e-5)


def test_log_probs_are_those_of_the_tempered_distribution() -> None:
    model, half = llama(), Sampling(temperature=0.5)
    written = run(write(engine_of(model), "s", [5, 6, 7], [], sampling=half, banned_sequences=()))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([written.ids])).logits[0] / 0.5
    expected = [float(logits.log_softmax(-1)[p - 1, written.ids[p]]) for p in written.places]
    assert written.log_probs == pytest.approx(expected, abs=1e-5)


def test_weights_that_change_between_rollouts_are_used_at_once() -> None:
    model = llama()
    engine = engine_of(model)
    run(write(engine, "s", [5, 6, 7]))
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    written = run(write(engine, "s", [5, 6, 7]))
    assert written.log_probs == pytest.approx(true_log_probs(model, written), abs=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "gemma3, sliding and full"])
def test_the_same_rollouts_come_whatever_the_concurrency(name: str) -> None:
    model = random_model(CONFIGS[name])
    alone, four, all_at_once = (run(write_many(engine_of(model, slots), 16)) for slots in (1, 4, 16))
    for a, b, c in zip(alone, four, all_at_once, strict=True):
        assert a.ids == b.ids == c.ids
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)
        assert a.log_probs == pytest.approx(c.log_probs, abs=1e-5)


def test_equal_seeds_write_the_same_and_different_seeds_do_not() -> None:
    async def twins() -> list[Written]:
        engine = engine_of(llama())
        return await asyncio.gather(*(write(engine, f"s{i}", [5, 6], seed=i // 2) for i in range(4)))

    first, second, third, fourth = run(twins())
    assert first.ids == second.ids != third.ids == fourth.ids


def test_a_row_that_waits_does_not_stop_the_others_and_goes_on_where_it_was() -> None:
    async def scenario(model: PreTrainedModel) -> tuple[Written, int, int]:
        engine = engine_of(model, slots=3)
        waiting = Written(range(20, 40))
        waiting.add(await engine.generate(ask("waits", waiting.ids)))
        # If the engine waited for that row, this would never end.
        await asyncio.gather(*(write(engine, f"s{i}", [30, 31 + i], seed=i) for i in range(6)))
        before = engine.forwarded_tokens
        waiting.ids += SHORT
        waiting.add(await engine.generate(ask("waits", waiting.ids)))
        return waiting, engine.forwarded_tokens - before, len(waiting.ids)

    model = llama()
    waiting, forwarded, _ = run(scenario(model))
    assert waiting.log_probs == pytest.approx(true_log_probs(model, waiting), abs=1e-5)
    assert forwarded == 1 + len(SHORT) + 5  # the last sampled one, the inserted, all new ones but the last


def test_each_token_is_forwarded_once_and_a_groups_prompt_once_for_all() -> None:
    async def group(engine: TransformersEngine, prompt: Sequence[int]) -> list[Written]:
        return await asyncio.gather(*(write(engine, f"s{i}", prompt, seed=i) for i in range(4)))

    engine, prompt = engine_of(llama()), tuple(range(20, 70))
    rollouts = run(group(engine, prompt))
    # A row's last token is sampled but never fed.
    assert engine.forwarded_tokens == len(prompt) - 1 + sum(len(r.ids) - len(prompt) for r in rollouts)


def test_a_group_that_exceeds_the_slots_computes_its_prompt_once_all_the_same() -> None:
    model = llama()
    engine, prompt = engine_of(model, slots=3), tuple(range(20, 70))

    async def group() -> list[Written]:
        # Of different lengths, so that a sibling is alive whenever a slot is free.
        inserts = [[SHORT[: 1 + i]] * (1 + i % 3) for i in range(8)]
        return await asyncio.gather(
            *(write(engine, f"s{i}", prompt, inserts[i], seed=i, new=4 + i) for i in range(8))
        )

    rollouts = run(group())
    assert engine.forwarded_tokens == len(prompt) - 1 + sum(len(r.ids) - len(prompt) for r in rollouts)
    for written in rollouts:
        assert written.log_probs == pytest.approx(true_log_probs(model, written), abs=1e-5)


def test_a_session_that_begins_anew_forgets_what_it_held() -> None:
    async def scenario(model: PreTrainedModel) -> Written:
        engine = engine_of(model)
        await engine.generate(ask("s", range(20, 60)))
        return await write(engine, "s", range(30, 60))

    model = llama()
    written = run(scenario(model))
    assert written.log_probs == pytest.approx(true_log_probs(model, written), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "stop", "read"),
    [
        ("so <verify> 8 </verify> and", ("</verify>",), "so <verify> 8 </verify>"),
        ("so </knowledge>\n\nthe", ("</verify>", "</knowledge>"), "so </knowledge>\n\n"),
        ("a </ver </verify>, so", ("</verify>",), "a </ver </verify>,"),
        ("</verify> </verify> a", ("</verify>",), "</verify>"),
        ("8 \u4f60</verify> a", ("</verify>",), "8 \u4f60</verify>"),
    ],
)
def test_generation_ends_with_the_token_that_completes_a_stop_string(
    text: str, stop: tuple[str, ...], read: str
) -> None:
    said = TOKENIZER.encode(text)
    model = reciting_model(VOCABULARY, [7, *said])
    completion = run(engine_of(model, capacity=64).generate(ask("s", [7], 40, stop=stop)))
    assert completion.stop is StopReason.STOP_STRING
    assert TOKENIZER.decode(completion.ids) == read and len(completion.ids) < len(said)


def test_a_stop_string_in_the_prefix_or_half_in_it_does_not_count() -> None:
    prefix, said = TOKENIZER.encode("so </verify> </ver"), TOKENIZER.encode("ify> and 8 </verify> a")
    model = reciting_model(VOCABULARY, [*prefix, *said])
    completion = run(engine_of(model, capacity=64).generate(ask("s", prefix, 40, stop=("</verify>",))))
    assert TOKENIZER.decode(completion.ids) == "ify> and 8 </verify>"


def test_end_token_and_limit_are_told_apart() -> None:
    said = [*TOKENIZER.encode("8 legs."), END, *TOKENIZER.encode(" more")]
    engine = engine_of(reciting_model(VOCABULARY, [7, *said]), capacity=64)
    plain = GenerationRequest(session="a", prefix_ids=(7,), max_new_tokens=40, stop=("</verify>",))
    ended = run(engine.generate(plain))
    cut = run(engine.generate(replace(plain, session="b", max_new_tokens=3)))
    assert (ended.stop, ended.ids[-1], len(ended.ids)) == (StopReason.END, END, said.index(END) + 1)
    assert (cut.stop, cut.ids) == (StopReason.LENGTH, tuple(said[:3]))
    assert len(cut.log_probs) == 3


@pytest.mark.parametrize("broken", [("s", [1] * 60, 5), ("s", [], 5), ("s", [1, 2], 0)])
def test_a_request_without_room_is_refused(broken: tuple[str, list[int], int]) -> None:
    with pytest.raises(EngineError, match="session s: .* do not fit 64"):
        run(engine_of(llama(), capacity=64).generate(ask(*broken)))


@pytest.mark.parametrize("model", [llama(), reciting_model(VOCABULARY, range(20, 84))], ids=["llama", "gpt2"])
def test_a_request_may_fill_its_slot_to_the_brim_beside_longer_and_shorter_ones(
    model: PreTrainedModel,
) -> None:
    async def scenario(engine: TransformersEngine) -> list[Written]:
        first = Written(range(20, 58))
        first.add(await engine.generate(ask("first", first.ids, 4)))
        first.ids += LONG[: LOCKSTEP_TOKENS + 1]
        # Fed in one pass with a longer prompt, the first session's padding runs past the end of its slot.
        more, *others = await asyncio.gather(
            engine.generate(ask("first", first.ids, 5)),
            *(write(engine, f"s{n}", range(20, 20 + n), [], new=64 - n) for n in (10, 60)),
        )
        first.add(more)
        return [first, *others]

    for written in run(scenario(engine_of(model, capacity=64))):
        assert len(written.ids) == 64
        assert written.log_probs == pytest.approx(true_log_probs(model, written), abs=1e-5)


def test_a_forward_pass_that_fails_answers_all_who_wait_and_the_engine_goes_on() -> None:
    async def scenario(model: PreTrainedModel) -> tuple[list[Any], Written]:
        engine = engine_of(model, slots=2)
        passes = 0

        def failing(*_: object) -> None:
            nonlocal passes
            passes += 1
            if passes > 9:
                raise RuntimeError("out of memory")

        hook = model.register_forward_pre_hook(failing)
        answers = await asyncio.gather(
            *(write(engine, f"s{i}", [5, 6 + i]) for i in range(4)), return_exceptions=True
        )
        hook.remove()
        for i in range(4):
            await engine.release(f"s{i}")
        return answers, await write(engine, "s0", [5, 6])

    model = llama()
    answers, written = run(scenario(model))
    assert all(isinstance(a, EngineError) and "out of memory" in str(a) for a in answers)
    assert written.log_probs == pytest.approx(true_log_probs(model, written), abs=1e-5)


def test_releasing_frees_the_slot_of_a_session_that_waits_and_unknown_ones_are_ignored() -> None:
    async def scenario() -> Written:
        engine = engine_of(llama(), slots=1)
        await engine.generate(ask("first", [5, 6]))
        second = asyncio.create_task(write(engine, "second", [5, 6]))
        await asyncio.sleep(0.05)
        assert not second.done()
        await engine.release("nobody")
        await engine.release("first")
        return await second

    assert len(run(scenario()).places) == 18


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("slots", [1, 5])
def test_a_rollout_that_is_cancelled_gives_its_slot_back_and_wedges_no_one(
    slots: int, steps: int, settled: bool
) -> None:
    async def scenario(model: PreTrainedModel) -> list[Written]:
        engine = engine_of(model, slots)
        others = [asyncio.create_task(write(engine, f"s{i}", [5, 6, 7 + i], seed=i)) for i in range(3)]
        # Cancelled before it begins, while it waits for a slot, or while it decodes.
        doomed = [asyncio.create_task(engine.generate(ask(f"d{i}", [8, 9], 40))) for i in range(2)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for i, task in enumerate(doomed):
            task.cancel()
            if settled:
                await asyncio.gather(task, return_exceptions=True)
            await engine.release(f"d{i}")
        return [*await asyncio.gather(*others), await write(engine, "later", [5, 6])]

    model = llama()
    for written in run(scenario(model)):
        assert written.log_probs == pytest.approx(true_log_probs(model, written), abs=1e-5)


def test_a_session_that_is_released_just_as_it_asks_for_more_wedges_no_one() -> None:
    async def scenario() -> Written:
        engine = engine_of(llama(), slots=2)
        first = await engine.generate(ask("doomed", [5, 6]))
        more = asyncio.create_task(engine.generate(ask("doomed", [5, 6, *first.ids, 9])))
        other = asyncio.create_task(write(engine, "other", [5, 6]))
        await asyncio.sleep(0)
        more.cancel()
        await engine.release("doomed")
        return await other

    assert len(run(scenario()).places) == 18


RECURRENT = [JambaConfig(), BambaConfig(), FalconH1Config(), Mamba2Config(), Qwen3NextConfig()]


@pytest.mark.parametrize("config", [*RECURRENT, Llama4TextConfig()], ids=lambda config: config.model_type)
def test_layers_that_cannot_pause_are_refused_by_name(config: PretrainedConfig) -> None:
    with pytest.raises(
        ValueError, match=r"policy.model: layers of type \['.*use a model with full or sliding"
    ):
        SlotCache(config, slots=1, capacity=8)
