"""The limits of one rollout: consultations, tokens of a feedback, tokens of a response.

Where consulting is allowed, a whole consultation and an answer fit into the response.
"""

from dataclasses import dataclass

_LEAST_OVERHEAD_TOKENS = 5
"""The request's two tags, the feedback's two tags and one token of an answer, each at least one token."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits per rollout. Raises `ValueError`, naming field, value and fix, for limits that do not fit.

    The rule knows no tokenizer: it is the least that any needs. `TagCodec.request_room` is exact.

    >>> Limits(max_consultations=3, max_feedback_tokens=256, max_response_tokens=200)
    Traceback (most recent call last):
    ...
    ValueError: rollout.max_response_tokens = 200 has no room for one consultation and an answer; \
make it at least 261 or lower consult.max_feedback_tokens = 256
    """

    max_consultations: int
    max_feedback_tokens: int
    """Content of one feedback, tags excluded."""
    max_response_tokens: int
    """POLICY, FEEDBACK and SCAFFOLD together."""

    def __post_init__(self) -> None:
        for field, value, least in (
            ("consult.max_consultations", self.max_consultations, 0),
            ("consult.max_feedback_tokens", self.max_feedback_tokens, 1),
            ("rollout.max_response_tokens", self.max_response_tokens, 1),
        ):
            if value < least:
                raise ValueError(f"{field} = {value} is too small; make it at least {least}")
        least = self.max_feedback_tokens + _LEAST_OVERHEAD_TOKENS
        if self.max_consultations and self.max_response_tokens < least:
            raise ValueError(
                f"rollout.max_response_tokens = {self.max_response_tokens} has no room for one consultation "
                f"and an answer; make it at least {least} or lower "
                f"consult.max_feedback_tokens = {self.max_feedback_tokens}"
            )
