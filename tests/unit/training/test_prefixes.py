"""Shared beginnings go through the model once, and nothing that is learnt changes by it."""

from random import Random

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from aipo.core.advantages import Advantage
from aipo.core.batch import Row, weighted_rows
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source
from aipo.training import batch, update
from aipo.training.batch import SharedPrefixes
from aipo.training.log_probs import PolicyForward, packed_log_probs, token_log_probs
from aipo.training.prefixes import (
    PassCost,
    cheapest_trees,
    distinct_tokens,
    in_trees,
    packed_rows,
    prefix_tree,
)
from aipo.training.update import Updater, UpdateSettings
from support.families import FAMILIES, HYBRIDS, SHAPE, family
from support.updates import OBJECTIVE, double_model, gradient_of

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=1, max_size=6)
PROMPT = 17


@given(SEQUENCES)
def test_a_tree_holds_each_beginning_once_and_reads_back_as_the_sequences(
    sequences: list[tuple[int, ...]],
) -> None:
    tree = prefix_tree(sequences)
    beginnings = {sequence[: n + 1] for sequence in sequences for n in range(len(sequence))}
    assert len(tree) == len(beginnings) == distinct_tokens(sequences)
    for sequence, nodes in zip(sequences, tree.nodes, strict=True):
        assert tuple(tree.ids[node] for node in nodes) == sequence
        assert [tree.depths[node] for node in nodes] == list(range(len(sequence)))
        assert [tree.parents[node] for node in nodes[1:]] == list(nodes[:-1])


@given(SEQUENCES, st.integers(0, 4))
def test_a_token_attends_to_its_own_beginning_within_the_window_and_to_nothing_else(
    sequences: list[tuple[int, ...]], window: int
) -> None:
    tree = prefix_tree(sequences)
    rows = packed_rows([tree, prefix_tree([(1,) * (len(tree) + 2)])], [[1] * len(sequences), [1]], 0)
    allowed = rows.allowed(window)[0, 0]
    for nodes in tree.nodes:
        for depth, node in enumerate(nodes):
            first = max(0, depth + 1 - window) if window else 0
            assert allowed[node].nonzero().flatten().tolist() == list(nodes[first : depth + 1])
    assert allowed.any(-1).all()  # a padding token sees itself, or its softmax would be NaN


@given(SEQUENCES, st.integers(1, 20))
def test_every_sequence_is_in_one_tree_and_no_tree_is_larger_than_it_may_be(
    sequences: list[tuple[int, ...]], most: int
) -> None:
    trees = in_trees(sequences, most)
    assert sorted(i for tree in trees for i in tree) == list(range(len(sequences)))
    for tree in trees:
        assert len(tree) == 1 or distinct_tokens([sequences[i] for i in tree]) <= most


def test_rows_are_packed_where_that_saves_and_padded_where_attention_would_eat_it_up() -> None:
    shared = [(1,) * 300 + (i,) * 50 for i in range(2, 10)]
    assert cheapest_trees(shared, 4096, PassCost(token=1e8, attended=1e3)) == [list(range(8))]
    short = [sequence[280:] for sequence in shared]
    assert cheapest_trees(short, 4096, PassCost(token=1.0, attended=1e3)) is None
    apart = [(i,) * 50 for i in range(8)]
    assert cheapest_trees(apart, 4096, PassCost(token=1e8, attended=1e3)) is None


def siblings(rng: Random) -> list[tuple[int, ...]]:
    """A prompt, then responses that part from one another late, early and not at all."""
    prompt = [rng.randrange(5, 200) for _ in range(PROMPT)]
    common = [rng.randrange(5, 200) for _ in range(20)]
    return [
        (*prompt, *common[:shared], *(rng.randrange(5, 200) for _ in range(own)))
        for shared, own in ((0, 9), (20, 3), (12, 14), (12, 1), (5, 20))
    ]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("chunk", [None, 7], ids=["whole logits", "chunks, checkpointing"])
def test_values_and_gradients_of_every_family_are_those_of_padded_rows(name: str, chunk: int | None) -> None:
    one = family(name)
    ids = {"vocab_size": 340, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = one.config(**SHAPE | ids | one.more)
    config.initializer_range = 0.3
    torch.manual_seed(0)
    double = name not in ("qwen3-moe", "gpt-oss")  # grouped products have no float64
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=one.attention)
    model = (model.double() if double else model).eval()
    rng = Random(3)
    groups = [siblings(rng), siblings(rng)]
    flat = [sequence for group in groups for sequence in group]
    width = max(map(len, flat))
    padded = torch.tensor([[*sequence, *[0] * (width - len(sequence))] for sequence in flat])
    wanted = torch.tensor([[PROMPT <= t < len(sequence) for t in range(width)] for sequence in flat])
    weight = torch.linspace(-1, 1, wanted.numel()).view(wanted.shape) * wanted
    rows = packed_rows([prefix_tree(group) for group in groups], [[PROMPT] * 5] * 2, 0)
    forward = PolicyForward(model, chunk, gradient_checkpointing=chunk is not None)
    assert forward.can_pack()
    found = []
    for log_p, entropy in (
        token_log_probs(forward, padded, 1.3, PROMPT),
        packed_log_probs(forward, rows, 1.3),
    ):
        model.zero_grad()
        (log_p * weight).sum().backward()
        found.append((log_p.detach() * wanted, entropy * wanted, [p.grad for p in model.parameters()]))
    (expected, entropy, gradients), (packed, packed_entropy, packed_gradients) = found
    # transformers' norms compute in float32 whatever the model is in, and Gemma 2's soft caps too.
    close = 1e-9 if double and name != "gemma2" else 1e-5
    torch.testing.assert_close(packed, expected, atol=close, rtol=0.0)
    torch.testing.assert_close(packed_entropy, entropy, atol=close, rtol=0.0)
    for a, b in zip(packed_gradients, gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max() if b is not None else 0), rtol=1e-4)


@pytest.mark.parametrize("name", ["bamba"] if "bamba" in HYBRIDS else list(HYBRIDS)[:1])
def test_a_model_with_a_recurrent_state_is_not_packed(name: str) -> None:
    one = family(name)
    ids = {"vocab_size": 340, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(one.config(**SHAPE | ids | one.more))
    assert not PolicyForward(model.eval()).can_pack()


def rows_of_groups() -> list[Row]:
    """Two groups of four; some rows teach nothing."""
    rng = Random(5)
    streams = []
    for group in range(2):
        prompt = tuple(rng.randrange(3, 50) for _ in range(9 + group))
        for member in range(4):
            said, heard = (tuple(rng.randrange(3, 50) for _ in range(n)) for n in (2 + member, 2))
            sampled = Segment(Source.POLICY, said, tuple(-3.0 - rng.random() for _ in said))
            streams.append(
                TokenStream((Segment(Source.PROMPT, prompt), sampled, Segment(Source.FEEDBACK, heard)))
            )
    of_rows = [
        (1.0, 0.5),
        (-0.5, 0.0),
        (0.0, 0.0),
        (0.2, 0.0),
        (0.0, 1.0),
        (0.0, 0.0),
        (-1.0, 0.2),
        (0.3, 0.3),
    ]
    return weighted_rows(streams, [Advantage(*a) for a in of_rows], "token_mean", feedback_trained=True)


@pytest.mark.parametrize("tokens", [30, 4096], ids=["several passes", "one pass"])
def test_an_update_with_shared_prefixes_is_the_gradient_by_its_definition(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LEAST_PARAMETERS", 0)
    monkeypatch.setattr(batch, "cheapest_trees", lambda ids, most, cost: in_trees(ids, most))
    monkeypatch.setattr(update, "token_log_probs", None)  # a padded pass would raise
    rows = rows_of_groups()
    model = double_model()
    before = [p.detach().clone() for p in model.parameters()]
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = UpdateSettings(
        temperature=1.0, microbatch_tokens=tokens, max_grad_norm=1e6, pad_id=0, share_prefixes=True
    )
    metrics = Updater(Accelerator(cpu=True), model, optimiser, settings).apply([rows], OBJECTIVE)
    expected = gradient_of(rows)
    for old, new, gradient in zip(before, model.parameters(), expected, strict=True):
        torch.testing.assert_close(old - new, gradient, atol=1e-6, rtol=1e-5)
    assert metrics["policy_tokens"] == 2 * (2 + 3 + 4 + 5)


def test_the_shares_of_ranks_are_all_rows_once_in_equally_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LEAST_PARAMETERS", 0)
    monkeypatch.setattr(batch, "cheapest_trees", lambda ids, most, cost: in_trees(ids, most))
    rows = rows_of_groups()
    prefixes = SharedPrefixes(double_model(), Accelerator(cpu=True))
    shares = [prefixes.microbatches(rows, 18, rank, 3) for rank in range(3)]
    parts = [part for share in shares for part in share or ()]
    counted = [row for part in parts if part.counted for row in part.rows]
    assert sorted(id(row.stream) for row in counted) == sorted(id(row.stream) for row in rows)
    assert len({len(share or ()) for share in shares}) == 1
    assert all(row.weight == 0 for part in parts if not part.counted for row in part.rows)
