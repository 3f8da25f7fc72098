"""Attention by blocks says what the mask says, and only computes less of it."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

from aipo.training import packed_attention
from aipo.training.log_probs import PolicyForward, packed_log_probs
from aipo.training.packed_attention import NAME, blocks_of
from aipo.training.prefixes import PackedRows, packed_rows, prefix_tree
from support.families import SHAPE

SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=7).map(lambda s: (3, *s)), min_size=1, max_size=6)
GROUP = [tuple(range(1, 40)) + tuple((n + i) % 50 for i in range(20 + n)) for n in range(4)]
ALONE = [tuple(range(5, 30))]


def rows_of(*trees: list[tuple[int, ...]]) -> PackedRows:
    return packed_rows([prefix_tree(tree) for tree in trees], [[1] * len(tree) for tree in trees], 0)


@given(SEQUENCES, st.integers(1, 5))
def test_each_query_is_in_one_block_and_looks_where_the_mask_lets_it(
    sequences: list[tuple[int, ...]], block_tokens: int
) -> None:
    rows = rows_of(sequences, [(3,) * 12])  # the second row is longer: the first has padding
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "BLOCK_TOKENS", block_tokens)
        of_first, _ = blocks_of(rows)
    number = len(prefix_tree(sequences))
    seen = torch.zeros(number, number, dtype=torch.bool)
    for block in of_first:
        keys = [position for a, b in block.keys for position in range(a, b)]
        seen[block.start : block.stop, keys] = block.mask
        assert block.stop - block.start <= block_tokens
    stops = [block.stop for block in of_first]
    assert [block.start for block in of_first] == [0, *stops[:-1]]
    assert seen.equal(rows.allowed()[0, 0, :number, :number])


def model_of(heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(**SHAPE | {"num_attention_heads": heads, "num_key_value_heads": kv_heads})


@pytest.mark.parametrize("block_tokens", [256, 16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_log_probabilities_and_gradients_are_those_of_the_masked_kernel(
    monkeypatch: pytest.MonkeyPatch, block_tokens: int, heads: int, kv_heads: int
) -> None:
    monkeypatch.setattr(packed_attention, "BLOCK_TOKENS", block_tokens)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_of(heads, kv_heads), dtype=torch.float64)
    rows, found = rows_of(GROUP, ALONE), {}
    for name in ("sdpa", NAME):
        model.set_attn_implementation(name)
        model.zero_grad()
        log_p = packed_log_probs(model, rows, 0.7)[0]
        (log_p**2).sum().backward()
        found[name] = [log_p.detach(), *(p.grad.clone() for p in model.parameters())]
    for ours, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_policy_that_packs_uses_it_and_its_folder_does_not_name_it(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(model_of(4, 2))
    calls: list[int] = []
    reference = AutoModelForCausalLM.from_config(model_of(4, 2))
    forward = PolicyForward(model, reference=reference)
    assert forward.can_pack()
    assert {model.config._attn_implementation, reference.config._attn_implementation} == {NAME}
    with pytest.MonkeyPatch.context() as patch:
        attended = packed_attention._attended
        patch.setattr(packed_attention, "_attended", lambda *a: calls.append(1) or attended(*a))
        packed_log_probs(forward, rows_of(GROUP, ALONE), 1.0)
    assert len(calls) == 2 * model.config.num_hidden_layers
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
