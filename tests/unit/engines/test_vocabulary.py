"""Ids above the tokenizer's last one are never sampled, and sampler and update agree on what is left."""

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from aipo.config.policy import PolicySettings
from aipo.engines.base import GenerationRequest, Sampling
from aipo.engines.transformers import TransformersEngine
from aipo.engines.vocabulary import filler_ids, known_ids
from aipo.training.log_probs import PolicyForward, token_log_probs
from aipo.training.model import load_policy, save_policy
from support.tokenizers import byte_level_bpe

EXTRA = 40


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A policy whose rows above the tokenizer's last id are the likeliest of all."""
    tokenizer = byte_level_bpe()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=known_ids(tokenizer) + EXTRA,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=request.param,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.get_output_embeddings().weight[known_ids(tokenizer) :] *= 40
    save_policy(model, tokenizer, tmp_path / "policy")
    return tmp_path / "policy"


def loaded(folder: Path) -> tuple[Qwen2ForCausalLM, range]:
    model, tokenizer = load_policy(PolicySettings(model=str(folder)), "cpu")
    assert isinstance(model, Qwen2ForCausalLM)
    return model, filler_ids(model, tokenizer)


def test_they_are_never_sampled_and_both_sides_say_the_same(folder: Path) -> None:
    model, filler = loaded(folder)
    assert len(filler) == EXTRA
    engine = TransformersEngine(model, byte_level_bpe(), slots=4, capacity=80)

    async def sampled(session: str) -> tuple[list[int], tuple[float, ...]]:
        request = GenerationRequest(
            session=session, prefix_ids=(3, 4, 5), max_new_tokens=60, sampling=Sampling(), seed=hash(session)
        )
        completion = await engine.generate(request)
        return [3, 4, 5, *completion.ids], completion.log_probs

    for session in "abc":
        ids, log_probs = asyncio.run(sampled(session))
        assert not set(ids) & set(filler)
        for forward in (PolicyForward(model), PolicyForward(model, chunk_tokens=7)):
            log_p, entropy = token_log_probs(forward, torch.tensor([ids]), 1.0, 3)
            torch.testing.assert_close(log_p[0, 3:], torch.tensor(log_probs), atol=1e-4, rtol=0)
            assert entropy.isfinite().all()


def test_without_the_cut_they_would_be_sampled(folder: Path) -> None:
    bare = AutoModelForCausalLM.from_pretrained(folder)
    _, filler = loaded(folder)
    likely = bare(torch.tensor([[3, 4, 5]])).logits[0, -1].softmax(-1)
    assert likely[filler.start :].sum() > 0.2


def test_the_update_leaves_their_rows_alone_and_both_ways_of_computing_agree(folder: Path) -> None:
    gradients = []
    for chunk in (0, 5):
        model, filler = loaded(folder)
        forward = PolicyForward(model, chunk_tokens=chunk)
        assert forward.check() == ""
        token_log_probs(forward, torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10]]), 1.0)[0].sum().backward()
        weight = model.get_output_embeddings().weight
        assert weight.grad is not None and not weight.grad[filler.start :].any()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_what_is_saved_has_all_rows(folder: Path, tmp_path: Path) -> None:
    model, filler = loaded(folder)
    save_policy(model, byte_level_bpe(), tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert again.config.vocab_size == filler.stop
    torch.testing.assert_close(again.state_dict(), model.state_dict())


def test_a_policy_whose_tokenizer_has_all_ids_is_left_as_it_is(tmp_path: Path) -> None:
    tokenizer = byte_level_bpe()
    config = Qwen2Config(
        vocab_size=known_ids(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    save_policy(Qwen2ForCausalLM(config), tokenizer, tmp_path / "policy")
    model, filler = loaded(tmp_path / "policy")
    assert not filler and not model.get_output_embeddings()._forward_hooks
