"""From the settings of the agents to the agents: which back end stands behind which name.

Owns that choice, what is shared between agents, and what a run's record says of them. Must not ask an agent.
Invariant: what is missing is one error that names field, value and fix; no record holds a key or credentials.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aipo.agents.base import Agent
from aipo.agents.cache import CachedAgent, ReplyStore
from aipo.agents.misbehaving import MisbehavingAgent, Misbehaviour
from aipo.agents.prompting import Context, agent_prompt
from aipo.agents.remote import ChatSampling, Endpoint, Prices, RemoteAgent
from aipo.agents.retry import RetryPolicy
from aipo.agents.scripted import ScriptedAgent, Unreliability
from aipo.config.agents import AgentFields
from aipo.config.settings import Settings
from aipo.tasks.base import Oracle

EXTERNAL_BACKENDS = ("remote", "local")
"""Back ends that can be missing, cost money and are worth a cache."""


class AgentSetupError(ValueError):
    """The agents cannot be made from the settings."""


@dataclass(frozen=True, slots=True)
class AgentSet:
    """The enabled agents, and what is written down of them."""

    agents: Mapping[str, Agent]
    record: Mapping[str, Mapping[str, Any]]
    """For `agents.json`: back end, model, host, prompt's hash, sampling, prices; by agent."""
    uncached: Mapping[str, Agent]
    """The same agents without their cache, for a canary: those of `EXTERNAL_BACKENDS` only."""


def build_agents(
    settings: Settings,
    oracle: Oracle | None,
    own: Mapping[str, Agent] | None = None,
    use_cache: bool = True,
) -> AgentSet:
    """Return the enabled agents; agents of your `own` take the place of all others. Raises `ValueError`s."""
    enabled = settings.agents.enabled
    if own is not None:
        if missing := set(enabled) - set(own):
            raise AgentSetupError(f"agents.enabled names {sorted(missing)}, but no such agent was given")
        record = {str(n): {"backend": "own", "type": type(own[n]).__qualname__} for n in enabled}
        return AgentSet({n: own[n] for n in enabled}, record, {})
    return _AgentFactory(settings, oracle, use_cache).crew()


class _AgentFactory:
    def __init__(self, settings: Settings, oracle: Oracle | None, use_cache: bool) -> None:
        self._settings, self._oracle = settings, oracle
        a = settings.agents
        self._fields = {name: a.of(name) for name in a.enabled}
        self._shared: dict[tuple[str, ...], Any] = {}
        kept = use_cache and a.cache and any(f.backend in EXTERNAL_BACKENDS for f in self._fields.values())
        for name, fields in self._fields.items():
            _refuse_missing(name, fields)
        self._store = ReplyStore(a.cache_folder, a.cache_megabytes) if kept else None

    def crew(self) -> AgentSet:
        agents: dict[str, Agent] = {}
        uncached: dict[str, Agent] = {}
        record = {}
        for name, fields in self._fields.items():
            agents[name] = agent = self._agent(name, fields)
            record[str(name)] = self._record(name, fields)
            if fields.backend not in EXTERNAL_BACKENDS:
                continue
            uncached[name] = agent
            if self._store is not None:
                agents[name] = CachedAgent(
                    agent,
                    self._store,
                    identity=_identity(name, fields),
                    context=Context(fields.context),
                    seeded=_sampling(fields).seeded,
                )
        return AgentSet(agents, record, uncached)

    def _agent(self, name: str, fields: AgentFields) -> Agent:
        if fields.backend == "remote":
            return RemoteAgent(
                name,
                self._endpoint(fields),
                fields.model,
                agent_prompt(name),
                _sampling(fields),
                RetryPolicy(fields.retries, fields.retry_wait_s),
                self._settings.agents.timeout_s,
                Context(fields.context),
                Prices(fields.price_prompt, fields.price_completion),
            )
        if fields.backend == "local":
            from aipo.agents.local import LocalAgent, LocalModel

            key = ("local", fields.model, fields.device)
            if key not in self._shared:
                self._shared[key] = LocalModel(fields.model, fields.device)
            prices = Prices(fields.price_prompt, fields.price_completion)
            how = _sampling(fields)
            return LocalAgent(
                name, self._shared[key], agent_prompt(name), how, Context(fields.context), prices
            )
        if fields.backend != "oracle":
            return MisbehavingAgent(name, Misbehaviour(fields.backend))
        if self._oracle is None:
            raise AgentSetupError(
                f"agents.{name}: backend = 'oracle', but task {self._settings.task.name!r} has no oracle to "
                "script agents with; set agents.backend = 'remote' and agents.base_url (docs/agents.md), "
                "give agents of your own, or set agents.enabled = [] for plain RLVR"
            )
        how_bad = Unreliability(fields.error_rate, fields.failure_rate, fields.latency_s)
        return ScriptedAgent(name, self._oracle.feedback, how_bad)

    def _endpoint(self, fields: AgentFields) -> Endpoint:
        key = ("remote", fields.base_url, fields.api_key_env)
        if key not in self._shared:
            # Agents that share a server share its limit: the lowest that one of them asks for.
            same = [f for f in self._fields.values() if f.backend == "remote" and _server(f) == key[1:]]
            self._shared[key] = Endpoint(
                fields.base_url,
                fields.api_key_env,
                min(f.concurrency for f in same),
                self._settings.agents.max_reply_bytes,
            )
        endpoint: Endpoint = self._shared[key]
        return endpoint

    def _record(self, name: str, fields: AgentFields) -> dict[str, Any]:
        if fields.backend not in EXTERNAL_BACKENDS:
            scripted = {"error_rate", "failure_rate", "latency_s"} if fields.backend == "oracle" else set()
            return {"backend": fields.backend, **fields.model_dump(include=scripted)}
        prompt = agent_prompt(name)
        return {
            "backend": fields.backend,
            "model": fields.model,
            "host": self._endpoint(fields).host if fields.backend == "remote" else None,
            "prompt": prompt.version,
            "prompt_sha256": prompt.hash,
            "context": fields.context,
            "sampling": fields.model_dump(include={"temperature", "top_p", "max_reply_tokens", "extra_body"}),
            "prices_per_million_tokens": {
                "prompt": fields.price_prompt,
                "completion": fields.price_completion,
            },
        }


def _server(fields: AgentFields) -> tuple[str, str]:
    return fields.base_url, fields.api_key_env


def _sampling(fields: AgentFields) -> ChatSampling:
    extra = json.dumps(fields.extra_body, sort_keys=True)
    how = (fields.temperature, fields.top_p, fields.max_reply_tokens)
    return ChatSampling(*how, fields.token_limit_field, extra)


def _identity(name: str, fields: AgentFields) -> str:
    """All that a reply depends on but the query. Not the address: a server that moves is the same server."""
    parts = [fields.backend, fields.model, agent_prompt(name).hash, fields.context, _sampling(fields)]
    return "\x1f".join(map(str, parts))


def _refuse_missing(name: str, fields: AgentFields) -> None:
    """Raise `AgentSetupError` for what a back end needs and the settings leave out."""
    if fields.backend not in EXTERNAL_BACKENDS:
        return
    needed = {"model": "qwen3-30b"} | (
        {"base_url": "http://localhost:8000/v1"} if fields.backend == "remote" else {}
    )
    for field, example in needed.items():
        if not getattr(fields, field):
            raise AgentSetupError(
                f"agents.{name}: backend = {fields.backend!r} needs a {field}; set agents.{field} for all "
                f"agents or agents.{name}.{field}, as in {field} = '{example}'"
            )
    if fields.backend == "remote" and fields.api_key_env and not os.environ.get(fields.api_key_env):
        raise AgentSetupError(
            f"agents.{name}: api_key_env = {fields.api_key_env!r}, but this environment variable is not set; "
            f"export {fields.api_key_env}=… first, or set api_key_env = '' for a server without a key"
        )
