"""From settings to agents: what each is made from, what they share, and what a run's record says of them.

What is missing is one error that names field, value and fix, before an agent is asked; no record holds a key
or credentials.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aipo.agents.backends import AgentSetupError, Backend, Making, backend_of
from aipo.agents.base import Agent
from aipo.agents.cache import CachedAgent, ReplyStore
from aipo.agents.named import AGENTS
from aipo.agents.prompting import Context
from aipo.agents.spec import AgentSpec
from aipo.config.agents import AgentFields, AgentOverrides
from aipo.config.settings import Settings
from aipo.consult.examples import worked_consultations
from aipo.consult.protocol import NOTICES, Protocol
from aipo.tasks.base import Oracle, Wording
from aipo.tasks.registry import task_spec


@dataclass(frozen=True, slots=True)
class AgentSet:
    """The enabled agents, and what is written down of them."""

    agents: Mapping[str, Agent]
    record: Mapping[str, Mapping[str, Any]]
    """For `agents.json`: back end, model, host, prompt's hash, sampling, prices; by agent."""
    uncached: Mapping[str, Agent]
    """The same agents without their cache, for a canary: those of external back ends only."""

    def beside(self, others: Mapping[str, Mapping[str, Any]]) -> "AgentSet":
        """Return the same agents, with what is written down of others whom no rollout consults."""
        return replace(self, record={**self.record, **others})


def build_agents(
    settings: Settings,
    oracle: Oracle | None,
    own: Mapping[str, Agent] | None = None,
    use_cache: bool = True,
) -> AgentSet:
    """Return the enabled agents; agents of your `own` take the place of all others. Raises `ValueError`s."""
    if own is not None:
        enabled = settings.agents.names
        if missing := set(enabled) - set(own):
            raise AgentSetupError(f"agents.enabled names {sorted(missing)}, but no such agent was given")
        record = {str(n): {"backend": "own", "type": type(own[n]).__qualname__} for n in enabled}
        return AgentSet({n: own[n] for n in enabled}, record, {})
    return _AgentFactory(settings, oracle, use_cache).agent_set()


class _AgentFactory:
    def __init__(self, settings: Settings, oracle: Oracle | None, use_cache: bool) -> None:
        self._settings, self._oracle = settings, oracle
        a = settings.agents
        specs = a.specs()
        a.refuse_other_names("agents", a.tables, {*AGENTS, *(spec.name for spec in specs)})
        self._fields = {spec: a.of(spec.name) for spec in specs}
        self._backends = {spec: backend_of(fields.backend) for spec, fields in self._fields.items()}
        self._shared: dict[tuple[str, ...], Any] = {}
        for spec, backend in self._backends.items():
            _refuse_missing(f"agents.{spec.name}", self._fields[spec], backend)
        kept = use_cache and a.cache and any(backend.is_external for backend in self._backends.values())
        self._store = ReplyStore(a.cache_folder, a.cache_megabytes) if kept else None

    def agent_set(self) -> AgentSet:
        agents: dict[str, Agent] = {}
        uncached: dict[str, Agent] = {}
        record = {}
        for spec, backend in self._backends.items():
            making = self._making(spec)
            agents[spec.name] = agent = backend.make(making)
            record[spec.name] = _record(making, backend, agent)
            if not backend.is_external:
                continue
            uncached[spec.name] = agent
            if self._store is not None:
                agents[spec.name] = _cached(agent, making, self._store)
        return AgentSet(agents, record, uncached)

    def _making(self, spec: AgentSpec) -> Making:
        fields = self._fields[spec]
        at_servers = [f for s, f in self._fields.items() if self._backends[s] is self._backends[spec]]
        return Making(
            spec=spec,
            fields=fields,
            agents=self._settings.agents,
            task=self._settings.task.name,
            oracle=self._oracle.feedback if self._oracle else None,
            oracle_knows=_oracle_knows(self._settings),
            same_server=tuple(f for f in at_servers if f.server == fields.server),
            shared=self._shared,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAgent:
    """An agent that no rollout consults: whoever writes solutions, or judges."""

    agent: Agent
    fields: AgentFields
    """Its settings, resolved."""
    record: Mapping[str, Any]
    """As of an `AgentSet`."""


def build_own(
    settings: Settings, own: AgentOverrides, table: str, spec: AgentSpec, *, timeout_s: float, cache: bool
) -> OwnAgent:
    """Return an agent that no rollout consults, made from a table of its own. Raises `ValueError`s.

    It sees all that it is asked, whatever the agents are shown. `timeout_s`: of one answer, retries
    included. `cache`: whether its replies are kept as the agents' are, where these are kept.
    """
    a = settings.agents
    fields = a.resolved(own).model_copy(update={"context": Context.ALL.value})
    backend = backend_of(fields.backend)
    _refuse_missing(table, fields, backend)
    making = Making(
        spec=spec,
        fields=fields,
        agents=a.model_copy(update={"timeout_s": timeout_s}),
        task=settings.task.name,
        oracle=None,
        same_server=(fields,),
    )
    agent = backend.make(making)
    record = _record(making, backend, agent)
    if cache and a.cache and backend.is_external:
        agent = _cached(agent, making, ReplyStore(a.cache_folder, a.cache_megabytes))
    return OwnAgent(agent=agent, fields=fields, record=record)


def _cached(agent: Agent, making: Making, store: ReplyStore) -> Agent:
    return CachedAgent(
        agent=agent,
        store=store,
        identity=_identity(making),
        context=Context(making.fields.context),
        seeded=making.sampling.seeded,
    )


def protocol_of(
    enabled: Sequence[AgentSpec],
    order: Iterable[str] = (),
    also: Sequence[AgentSpec] = (),
    tags: Mapping[str, str] | None = None,
    feedback_tag: str = "feedback",
) -> Protocol:
    """Return the protocol of the enabled agents.

    `order`: names in the order in which the prompt offers them, before all others. `also`: agents whose tags
    are control strings though they are not enabled. `tags`: in place of the agents' own.
    """
    chosen = {spec.name: (tags or {}).get(spec.name, spec.tag) for spec in (*also, *enabled)}
    by_name = {spec.name: spec for spec in enabled}
    offered = [name for name in dict.fromkeys((*order, *by_name)) if name in by_name]
    return Protocol(
        tags=chosen,
        feedback_tag=feedback_tag,
        enabled=tuple(spec.name for spec in enabled),
        must_be_asked=frozenset(spec.name for spec in enabled if spec.must_be_asked),
        offers={name: by_name[name].offer for name in offered},
    )


def build_protocol(settings: Settings, everyone: bool = False) -> Protocol:
    """Return the protocol of the settings.

    A task with an oracle keeps the tags of the agents that the oracle has words of, enabled or not: they are
    words of its vocabulary. `everyone`: these are offered too, as in a warm start. Raises `ValueError`s, also
    for worked consultations (consult.examples) that cannot be shown.
    """
    specs = settings.agents.specs()
    known = {*AGENTS, *(spec.name for spec in specs)}
    settings.agents.refuse_other_names("consult.tags", settings.consult.tags, known)
    kept = [AGENTS[name] for name in _oracle_knows(settings)]
    enabled = tuple(dict.fromkeys([*kept, *specs])) if everyone else specs
    consult = settings.consult
    protocol = protocol_of(enabled, AGENTS, kept, consult.tags, consult.feedback_tag)
    worked = worked_consultations(consult.examples, consult.examples_file, protocol)
    return replace(protocol, examples=tuple(example.shown(protocol) for example in worked))


def wording_of(protocol: Protocol) -> Wording:
    """Return what oracles and traces need of a protocol."""
    return Wording(
        protocol.tags, protocol.feedback_tag, {str(outcome): text for outcome, text in NOTICES.items()}
    )


def oracle_of(settings: Settings) -> Oracle | None:
    """Return the task's own oracle, if a task is named and has one."""
    make = task_spec(settings.task.name).oracle if settings.task.name else None
    return make(wording_of(build_protocol(settings))) if make else None


def _oracle_knows(settings: Settings) -> tuple[str, ...]:
    """Return the agents that the task's oracle has words of; none where no task is named."""
    return task_spec(settings.task.name).agents if settings.task.name else ()


def _record(making: Making, backend: Backend, agent: Agent) -> dict[str, Any]:
    fields = making.fields
    if backend.recorded or not backend.is_external:
        own = {"type": type(agent).__qualname__} if ":" in fields.backend else {}
        return {"backend": fields.backend, **own, **fields.model_dump(include=set(backend.recorded))}
    prompt = making.spec.prompt
    return {
        "backend": fields.backend,
        "model": fields.model,
        "host": making.endpoint().host if fields.base_url and "base_url" in backend.needs else None,
        "prompt": prompt.version,
        "prompt_sha256": prompt.hash,
        "context": fields.context,
        "sampling": fields.model_dump(include={"temperature", "top_p", "max_reply_tokens", "extra_body"})
        | ({"omit": fields.omit} if fields.omit else {})
        | ({} if fields.system_role else {"system_role": False}),
        "prices_per_million_tokens": {
            "prompt": fields.price_prompt,
            "completion": fields.price_completion,
        },
    }


def _identity(making: Making) -> str:
    """All that a reply depends on but the query. Not the address: a server that moves is the same server."""
    f = making.fields
    parts = [f.backend, f.model, making.spec.prompt.hash, f.context, making.sampling]
    parts += [f"without {f.omit}"] if f.omit else []
    parts += [] if f.system_role else ["no system role"]
    parts += [f.mcp.model_dump_json()] if f.backend == "mcp" else []
    return "\x1f".join(map(str, parts))


def _refuse_missing(table: str, fields: AgentFields, backend: Backend) -> None:
    """Raise `AgentSetupError` for what a back end needs and the settings leave out."""
    for field, example in backend.needs.items():
        if not getattr(fields, field):
            raise AgentSetupError(
                f"{table}: backend = {fields.backend!r} needs a {field}; set agents.{field} for all "
                f"agents or {table}.{field}, as in {field} = '{example}'"
            )
    needs_key = "base_url" in backend.needs and fields.api_key_env
    if needs_key and not os.environ.get(fields.api_key_env):
        raise AgentSetupError(
            f"{table}: api_key_env = {fields.api_key_env!r}, but this environment variable is not set; "
            f"export {fields.api_key_env}=… first, or set api_key_env = '' for a server without a key"
        )
