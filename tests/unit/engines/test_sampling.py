"""What the in-process engine samples follows the model's distribution, its bans and its truncations."""

import asyncio
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from aipo.engines.base import Completion, GenerationRequest, Sampling
from aipo.engines.transformers import TransformersEngine
from aipo.tasks.cpu.tiny import build_tokenizer
from support.engines import random_model

TOKENIZER = build_tokenizer("a b c d e f".split(), [])
VOCABULARY = len(TOKENIZER)
END = TOKENIZER.eos_token_id
PROMPT = (7, 8, 9)
MODEL = random_model(
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=None,
        bos_token_id=None,
    )
)
DRAWS = 3000
CHI_SQUARE_999 = {11: 31.26, 3: 16.27}
"""99.9 % points by degrees of freedom."""


def sample(number: int, new: int = 1, prompt: tuple[int, ...] = PROMPT, **more: Any) -> list[Completion]:
    """Sample from `number` seeds at once."""

    async def sessions() -> list[Completion]:
        engine = TransformersEngine(MODEL, TOKENIZER, slots=250, capacity=64)

        async def one(seed: int) -> Completion:
            completion = await engine.generate(
                GenerationRequest(session=str(seed), prefix_ids=prompt, max_new_tokens=new, seed=seed, **more)
            )
            await engine.release(str(seed))
            return completion

        return await asyncio.gather(*map(one, range(number)))

    return asyncio.run(sessions())


def probabilities(prefix: tuple[int, ...] = PROMPT, temperature: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        return (MODEL(input_ids=torch.tensor([prefix])).logits[0, -1].double() / temperature).softmax(-1)


def chi_square(counts: Counter[int], p: torch.Tensor) -> float:
    n = counts.total()
    return sum((counts[i] - n * float(q)) ** 2 / (n * float(q)) for i, q in enumerate(p) if q > 0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_tokens_follow_the_models_distribution(temperature: float) -> None:
    drawn = sample(DRAWS, sampling=Sampling(temperature=temperature))
    assert (
        chi_square(Counter(c.ids[0] for c in drawn), probabilities(temperature=temperature))
        < (CHI_SQUARE_999[VOCABULARY - 1])
    )


def test_second_tokens_are_independent_of_the_first_draw() -> None:
    drawn = sample(DRAWS, new=2)
    likeliest = int(probabilities().argmax())
    seconds = Counter(c.ids[1] for c in drawn if c.ids[0] == likeliest)
    assert seconds.total() > 200
    assert chi_square(seconds, probabilities((*PROMPT, likeliest))) < CHI_SQUARE_999[VOCABULARY - 1]


def test_a_seeds_draws_at_two_places_of_a_rollout_are_independent() -> None:
    longer = (*PROMPT, 7)
    pairs = zip(sample(DRAWS), sample(DRAWS, prompt=longer), strict=True)
    agreeing = sum(a.ids == b.ids for a, b in pairs) / DRAWS
    by_chance = float((probabilities() * probabilities(longer)).sum())
    assert agreeing == pytest.approx(by_chance, abs=4 * (by_chance / DRAWS) ** 0.5)


def test_temperature_0_takes_the_likeliest_token_and_reports_it_at_temperature_1() -> None:
    for completion in sample(3, new=5, sampling=Sampling(temperature=0.0)):
        prefix = PROMPT
        for token, log_prob in zip(completion.ids, completion.log_probs, strict=True):
            p = probabilities(prefix)
            assert token == int(p.argmax()) and log_prob == pytest.approx(float(p[token].log()), abs=1e-5)
            prefix = (*prefix, token)


def test_top_k_keeps_the_k_likeliest_and_their_proportions() -> None:
    drawn = Counter(c.ids[0] for c in sample(DRAWS, sampling=Sampling(top_k=4)))
    p = probabilities()
    kept = p.topk(4).indices
    assert set(drawn) == set(kept.tolist())
    truncated = torch.zeros_like(p)
    truncated[kept] = p[kept] / p[kept].sum()
    assert chi_square(drawn, truncated) < CHI_SQUARE_999[3]


@pytest.mark.parametrize("top_p", [0.01, 0.4, 0.7])
def test_top_p_keeps_the_smallest_set_of_the_likeliest_that_reaches_it(top_p: float) -> None:
    drawn = {c.ids[0] for c in sample(DRAWS, sampling=Sampling(top_p=top_p))}
    values, order = probabilities().sort(descending=True)
    size = int((values.cumsum(0) < top_p).sum()) + 1
    assert drawn == set(order[:size].tolist())


def test_what_is_reported_knows_nothing_of_truncation_and_is_without_the_tokens_that_can_never_come() -> None:
    p, longer = probabilities(), (*PROMPT[1:], 10)
    for completion in sample(
        40, banned_sequences=((END,), (5,), longer), sampling=Sampling(top_k=3, top_p=0.9)
    ):
        left = p[completion.ids[0]] / (1 - p[END] - p[5])
        assert completion.log_probs[0] == pytest.approx(float(left.log()), abs=1e-5)


def test_rows_with_and_without_truncation_share_a_batch() -> None:
    async def both() -> list[Completion]:
        engine = TransformersEngine(MODEL, TOKENIZER, slots=4, capacity=64)
        samplings = [Sampling(), Sampling(top_k=1), Sampling(temperature=0.0), Sampling(top_p=0.01)]
        requests = [
            GenerationRequest(session=str(i), prefix_ids=PROMPT, max_new_tokens=4, sampling=s)
            for i, s in enumerate(samplings)
        ]
        return await asyncio.gather(*map(engine.generate, requests))

    free, *certain = asyncio.run(both())
    assert free.ids == sample(1, new=4)[0].ids
    assert len({completion.ids for completion in certain}) == 1


def test_banned_sequences_are_never_sampled_and_their_beginnings_are() -> None:
    single, pair, triple = (5,), (6, 7), (8, 6, 9)
    free = sample(300, new=40, banned_sequences=((END,),))
    banned = sample(300, new=40, banned_sequences=((END,), single, pair, triple))

    def holds(completions: list[Completion], sequence: tuple[int, ...]) -> bool:
        n = len(sequence)
        return any(c.ids[i : i + n] == sequence for c in completions for i in range(len(c.ids) - n + 1))

    for sequence in (single, pair, triple):
        assert holds(free, sequence) and not holds(banned, sequence)
    assert holds(banned, (6,)) and holds(banned, (7,)) and holds(banned, (8, 6)) and holds(banned, (9,))


def test_a_ban_reaches_back_into_the_prefix() -> None:
    drawn = sample(DRAWS, banned_sequences=((*PROMPT[1:], 10), (PROMPT[-1], 11)))
    seen = {c.ids[0] for c in drawn}
    assert seen == set(range(VOCABULARY)) - {10, 11}
