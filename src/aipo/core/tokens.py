"""Aligned token streams: every id of a rollout together with its source and its sampling log-probability.

A misaligned stream cannot be built.

Alignment by example, one consultation inside a rollout:

    PROMPT            POLICY                        FEEDBACK                          POLICY
    2 dogs, 1 spider  4 8 8 ; <knowledge> b <end>   <feedback> 8 </feedback>          8 6 1 ; = 6 1
    no log-prob       one log-prob each             no log-prob: sampled by no one    one log-prob each
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from aipo.core.types import Source


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens with one source.

    Raises `ValueError` unless POLICY tokens carry one finite log-probability (<= 0) each; FEEDBACK may carry
    the agent's own, log q, where it reported them; nothing else carries any.

    >>> Segment(Source.POLICY, (5, 6), (-0.1, -2.0)).source.name
    'POLICY'
    >>> Segment(Source.SCAFFOLD, (7,), (-0.1,))
    Traceback (most recent call last):
    ...
    ValueError: SCAFFOLD tokens were not sampled and carry no log-probabilities
    """

    source: Source
    ids: tuple[int, ...]
    log_probs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.source is not Source.POLICY and not self.log_probs:
            return
        if self.source not in (Source.POLICY, Source.FEEDBACK):
            raise ValueError(f"{self.source.name} tokens were not sampled and carry no log-probabilities")
        if len(self.log_probs) != len(self.ids):
            raise ValueError(
                f"{len(self.ids)} {self.source.name} ids but {len(self.log_probs)} log-probabilities"
            )
        # A sampler may round the log-probability of a certain token to a hair above 0.
        if not all(-float("inf") < log_prob <= 1e-4 for log_prob in self.log_probs):
            raise ValueError(f"a {self.source.name} log-probability is not a finite number <= 0")


@dataclass(frozen=True, slots=True)
class TokenStream:
    """One rollout as segments; the first is the prompt and the only PROMPT one.

    >>> stream = TokenStream((Segment(Source.PROMPT, (1, 2)), Segment(Source.POLICY, (3,), (-0.5,)),
    ...                       Segment(Source.FEEDBACK, (4, 5))))
    >>> stream.ids, [source.name[0] for source in stream.sources], stream.log_probs
    ((1, 2, 3, 4, 5), ['P', 'P', 'P', 'F', 'F'], (0.0, 0.0, -0.5, 0.0, 0.0))
    >>> stream.count(Source.FEEDBACK)
    2
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments or self.segments[0].source is not Source.PROMPT or not self.segments[0].ids:
            raise ValueError("a stream begins with a PROMPT segment of at least one token")
        if any(segment.source is Source.PROMPT for segment in self.segments[1:]):
            raise ValueError("a stream has one PROMPT segment, its first")

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids, in the order that the engine saw them."""
        return tuple(chain.from_iterable(segment.ids for segment in self.segments))

    @property
    def sources(self) -> tuple[Source, ...]:
        """The source of each id."""
        return tuple(chain.from_iterable((s.source,) * len(s.ids) for s in self.segments))

    @property
    def log_probs(self) -> tuple[float, ...]:
        """The log-probability of each POLICY id by its sampler, of each FEEDBACK id by its agent; or 0."""
        return tuple(chain.from_iterable(s.log_probs or (0.0,) * len(s.ids) for s in self.segments))

    @property
    def prompt_length(self) -> int:
        """Number of PROMPT tokens."""
        return len(self.segments[0].ids)

    def count(self, source: Source) -> int:
        """Number of tokens of one source."""
        return sum(len(segment.ids) for segment in self.segments if segment.source is source)

    def __len__(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)


def stripped_copy(
    stream: TokenStream, consult_spans: Iterable[tuple[int, int]], solo_prompt_ids: Sequence[int]
) -> TokenStream:
    """Return a consult-stripped copy: what the policy would have written had it known [ours,
    docs/method.md#consult-stripped-copies].

    `consult_spans` are half-open spans of token positions in `stream` (requests, tags, notices). What stands
    outside them and after the prompt is kept, in order, behind the solo prompt; all of it is FEEDBACK, that
    is, off-policy: the policy sampled none of it in this context. Log-probabilities go along as log q:
    whoever wrote a token, policy or agent, wrote it with that probability.

    Degenerate case: a copy with nothing kept has an empty FEEDBACK segment and trains nothing.
    Does not re-tokenise: a token that holds both text and part of a tag goes with the tag.

    >>> stream = TokenStream((Segment(Source.PROMPT, (1,)), Segment(Source.POLICY, (2, 3), (-1.0, -1.0)),
    ...                       Segment(Source.FEEDBACK, (4, 5, 6)), Segment(Source.POLICY, (7,), (-1.0,))))
    >>> stripped_copy(stream, [(2, 3), (3, 4), (5, 6)], solo_prompt_ids=[9]).ids
    (9, 2, 5, 7)
    """
    gone = set(chain.from_iterable(range(start, end) for start, end in consult_spans))
    kept = [i for i in range(stream.prompt_length, len(stream)) if i not in gone]
    ids, log_q = stream.ids, stream.log_probs
    content = Segment(Source.FEEDBACK, tuple(ids[i] for i in kept), tuple(log_q[i] for i in kept))
    return TokenStream((Segment(Source.PROMPT, tuple(solo_prompt_ids)), content))


def expert_stream(prompt_ids: Sequence[int], solution_ids: Sequence[int]) -> TokenStream:
    """Return a whole expert trajectory as a stream: off-policy tokens, so all of it is FEEDBACK.

    With one of these in a group, `shaped` and q := 1 this is LUFFY (arXiv 2504.14945); with nothing else and
    `likelihood` it is supervised fine-tuning.
    """
    return TokenStream(
        (Segment(Source.PROMPT, tuple(prompt_ids)), Segment(Source.FEEDBACK, tuple(solution_ids)))
    )
