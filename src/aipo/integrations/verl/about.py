"""A rollout on its way to the driver, but for its tokens: what its group, its credit and its record need.

`member_of(table_of(member, ...), stream)` is the member again. The table holds plain values only.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from aipo.core.tokens import TokenStream
from aipo.core.types import Condition, StopReason
from aipo.grading import Grade
from aipo.rollout.episode import Consultation, Rollout
from aipo.rollout.group import MemberRollout
from aipo.rollout.reward import WeighedGrade

ABOUT = "aipo"
"""Key of verl's `extra_fields`."""

_CONSULTATIONS = TypeAdapter(tuple[Consultation, ...])
_GRADES: dict[bool, TypeAdapter[Any]] = {False: TypeAdapter(Grade), True: TypeAdapter(WeighedGrade)}
"""By whether the reward is weighed."""


def table_of(
    member: MemberRollout, solo_prompt_ids: tuple[int, ...] = (), expert: bool = False
) -> dict[str, Any]:
    """Return plain values. `solo_prompt_ids` are those of a copy, where the rollout may deserve one."""
    weighed = isinstance(member.grade, WeighedGrade)
    table: dict[str, Any] = {
        "condition": member.condition.value,
        "banned": member.banned,
        "weighed": weighed,
        "grade": _GRADES[weighed].dump_python(member.grade, mode="json"),
        "solo_prompt_ids": list(solo_prompt_ids),
        "expert": expert,
        "produced": None,
    }
    if member.rollout is not None:
        made = member.rollout
        table["produced"] = {
            "response": made.response,
            "policy_text": made.policy_text,
            "stop": made.stop.value,
            "consultations": _CONSULTATIONS.dump_python(made.consultations, mode="json"),
            "consult_spans": [list(span) for span in made.consult_spans],
            "weights_version": made.weights_version,
        }
    return table


def member_of(table: Mapping[str, Any], rollout_id: str, stream: TokenStream) -> MemberRollout:
    """Return the rollout again. Raises `KeyError` and `ValueError` for a table of something else."""
    made = table["produced"]
    produced = None
    if made is not None:
        produced = Rollout(
            stream=stream,
            response=made["response"],
            policy_text=made["policy_text"],
            stop=StopReason(made["stop"]),
            consultations=_CONSULTATIONS.validate_python(list(made["consultations"])),
            consult_spans=tuple((int(start), int(end)) for start, end in made["consult_spans"]),
            weights_version=made["weights_version"],
        )
    return MemberRollout(
        id=rollout_id,
        condition=Condition(table["condition"]),
        rollout=produced,
        grade=_GRADES[bool(table["weighed"])].validate_python(dict(table["grade"])),
        banned=bool(table["banned"]),
    )
