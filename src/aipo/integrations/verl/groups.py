"""The groups of a step, as verl's driver finds their rows in the transfer queue.

They are those that `aipo train` would have sampled: the same members, streams and verdicts, in the order of
the data, so that what follows is the package's own code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import transfer_queue as tq
from transfer_queue import KVBatchMeta

from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source
from aipo.integrations.verl.about import ABOUT, member_of
from aipo.integrations.verl.credit import Drawn
from aipo.integrations.verl.loss import SOURCES, LossError
from aipo.integrations.verl.problems import place_of, problem_of
from aipo.rollout.group import Group, MemberRollout

WANTED = ("uid", SOURCES, "extra_fields", "extra_info", "prompts", "responses", "rollout_log_probs")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    key: str
    uid: str
    session: int
    about: Mapping[str, Any]
    info: Mapping[str, Any]
    stream: TokenStream


def read_groups(batch: KVBatchMeta) -> Drawn:
    """Return the groups of a batch's rows. Raises `LossError` for rows of another agent loop."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(WANTED))
    if missing := [name for name in WANTED if name not in data]:
        raise LossError(
            f"rows of this step have no {missing}: they did not all come from the agent loop `aipo`; set "
            "rollout.agent.default_agent_loop=aipo, and write the data with `aipo data export`"
        )
    uids, extras, infos = (_list(data[name]) for name in ("uid", "extra_fields", "extra_info"))
    columns = [data[name] for name in ("prompts", "responses", SOURCES, "rollout_log_probs")]
    by_uid: dict[str, list[_Row]] = {}
    for i, key in enumerate(batch.keys):
        row = _Row(
            key=key,
            uid=str(uids[i]),
            session=int(key.rsplit("_", 2)[1]),
            about=extras[i][ABOUT],
            info=infos[i],
            stream=stream_of(*(column[i].tolist() for column in columns)),
        )
        by_uid.setdefault(row.uid, []).append(row)
    ordered = sorted(by_uid.values(), key=lambda rows: place_of({"extra_info": rows[0].info}))
    keys = {id(row.stream): row.key for rows in ordered for row in rows}
    return Drawn(groups=[_group(rows) for rows in ordered], keys=keys)


def _group(rows: Sequence[_Row]) -> Group:
    problem = problem_of({"extra_info": rows[0].info})
    members: list[MemberRollout] = []
    experts: list[TokenStream] = []
    solo_ids: tuple[int, ...] = ()
    for row in sorted(rows, key=lambda row: row.session):
        if row.about["expert"]:
            experts.append(row.stream)
            continue
        members.append(member_of(row.about, f"{problem.id}#{row.session}", row.stream))
        solo_ids = solo_ids or tuple(row.about["solo_prompt_ids"])
    return Group(problem=problem, members=tuple(members), experts=tuple(experts), solo_prompt_ids=solo_ids)


def stream_of(
    prompt: Sequence[int], response: Sequence[int], sources: Sequence[int], log_probs: Sequence[float]
) -> TokenStream:
    """Return a row's tokens as a stream; neighbours of one source are one segment."""
    segments, at = [Segment(Source.PROMPT, tuple(prompt))], 0
    for value, run in groupby(sources):
        source, end = Source(value), at + len(list(run))
        carries = source in (Source.POLICY, Source.FEEDBACK)
        own = tuple(log_probs[at:end]) if carries else ()
        segments.append(Segment(source, tuple(response[at:end]), own))
        at = end
    return TokenStream(tuple(segments))


def _list(column: Any) -> list[Any]:
    return list(column.tolist() if hasattr(column, "tolist") else column)
