"""What answers for an agent, by name: a server, a model in this process, the task's oracle and others.

A back end of your own is named `module:attribute`: an agent (anything with `answer`), or a callable that
takes the agent's spec and its settings and returns one. What cannot be made is one error that names field,
value and fix.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from aipo.agents.base import Agent
from aipo.agents.misbehaving import MisbehavingAgent, Misbehaviour
from aipo.agents.prompting import Context
from aipo.agents.scripted import Feedback, ScriptedAgent, Unreliability
from aipo.agents.spec import AgentSpec
from aipo.core.registry import Registry

if TYPE_CHECKING:
    from aipo.agents.remote import ChatSampling, Endpoint, Prices
    from aipo.config.agents import AgentFields, AgentSettings


class AgentSetupError(ValueError):
    """The agents cannot be made from the settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What a back end makes an agent from."""

    spec: AgentSpec
    fields: "AgentFields"
    agents: "AgentSettings"
    task: str
    oracle: Feedback | None
    """The task's, if it has one."""
    oracle_knows: tuple[str, ...] = ()
    """The agents whose words that oracle has."""
    same_server: tuple["AgentFields", ...] = ()
    """The settings of all agents at this one's address, its own among them."""
    shared: dict[tuple[str, ...], Any] = field(default_factory=dict)
    """Servers and models that several agents use, by what they are."""

    @property
    def sampling(self) -> "ChatSampling":
        """How replies are drawn."""
        from aipo.agents.remote import ChatSampling

        f = self.fields
        extra = json.dumps(f.extra_body, sort_keys=True)
        return ChatSampling(
            temperature=f.temperature,
            top_p=f.top_p,
            max_tokens=f.max_reply_tokens,
            limit_field=f.token_limit_field,
            extra_body=extra,
            omit=f.omit,
        )

    @property
    def prices(self) -> "Prices":
        """What its tokens cost."""
        from aipo.agents.remote import Prices

        return Prices(self.fields.price_prompt, self.fields.price_completion)

    def endpoint(self) -> "Endpoint":
        """Return the server; agents that share one share its limit: the lowest that one of them asks for."""
        from aipo.agents.remote import Endpoint

        key = ("remote", *self.fields.server)
        if key not in self.shared:
            most = min(f.concurrency for f in self.same_server)
            url, key_env = self.fields.server
            size = self.agents.max_reply_bytes
            self.shared[key] = Endpoint(
                base_url=url, api_key_env=key_env, concurrency=most, max_reply_bytes=size
            )
        endpoint: Endpoint = self.shared[key]
        return endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One back end."""

    make: Callable[[Making], Agent]
    needs: Mapping[str, str] = field(default_factory=dict)
    """Fields that may not be empty, each with an example."""
    is_external: bool = False
    """Whether it can be missing, costs money and is worth a cache."""
    recorded: frozenset[str] = frozenset()
    """Fields that a run's record has."""


def _remote(making: Making) -> Agent:
    from aipo.agents.remote import RemoteAgent
    from aipo.agents.retry import RetryPolicy

    f = making.fields
    return RemoteAgent(
        spec=making.spec,
        endpoint=making.endpoint(),
        model=f.model,
        sampling=making.sampling,
        retry=RetryPolicy(f.retries, f.retry_wait_s),
        deadline_s=making.agents.timeout_s,
        context=Context(f.context),
        prices=making.prices,
        system_role=f.system_role,
    )


def _local(making: Making) -> Agent:
    from aipo.agents.local import LocalAgent, LocalModel

    f = making.fields
    key = ("local", f.model, f.device)
    if key not in making.shared:
        making.shared[key] = LocalModel(f.model, f.device, f.concurrency)
    return LocalAgent(
        spec=making.spec,
        model=making.shared[key],
        sampling=making.sampling,
        context=Context(f.context),
        prices=making.prices,
        system_role=f.system_role,
    )


def _mcp(making: Making) -> Agent:
    from aipo.agents import mcp_tool

    f, name = making.fields, making.spec.name
    table = f"agents.{name}.mcp"
    if not (f.mcp.command or f.mcp.url):
        raise AgentSetupError(
            f"{table}: backend = 'mcp' needs a server; set {table}.command and .args, or {table}.url, as in "
            "url = 'http://localhost:8000/mcp'"
        )
    if not f.mcp.tool:
        raise AgentSetupError(
            f"{table}: backend = 'mcp' needs a tool; set {table}.tool, as in tool = 'search'"
        )
    if missing := [variable for variable in f.mcp.env_from if variable not in os.environ]:
        raise AgentSetupError(
            f"{table}.env_from = {missing[0]!r}: this environment variable is not set; export it first"
        )
    if not mcp_tool.is_installed():
        raise AgentSetupError(
            f"agents.{name}: backend = 'mcp' takes the package mcp, which is not there; {mcp_tool.INSTALL}"
        )
    key = ("mcp", *f.server)
    if key not in making.shared:
        making.shared[key] = mcp_tool.McpServer(
            settings=f.mcp,
            api_key_env=f.api_key_env,
            concurrency=min(each.concurrency for each in making.same_server),
            connect_s=making.agents.timeout_s,
        )
    return mcp_tool.McpAgent(
        name=name,
        server=making.shared[key],
        settings=f.mcp,
        deadline_s=making.agents.timeout_s,
        retries=f.retries,
        retry_wait_s=f.retry_wait_s,
        max_reply_bytes=making.agents.max_reply_bytes,
        context=Context(f.context),
    )


def _oracle(making: Making) -> Agent:
    name, f = making.spec.name, making.fields
    if making.oracle is None:
        raise AgentSetupError(
            f"agents.{name}: backend = 'oracle', but task {making.task!r} has no oracle to "
            "script agents with; set agents.backend = 'remote' and agents.base_url (docs/agents.md), "
            "give agents of your own, or set agents.enabled = [] for plain RLVR"
        )
    if name not in making.oracle_knows:
        raise AgentSetupError(
            f"agents.{name}: backend = 'oracle', but the oracle of task {making.task!r} has words of "
            f"{', '.join(making.oracle_knows)} only; set agents.{name}.backend to another one, or take "
            f"{name} out of agents.enabled"
        )
    how_bad = Unreliability(f.error_rate, f.failure_rate, f.latency_s)
    return ScriptedAgent(
        name=name, oracle=making.oracle, unreliability=how_bad, approves=making.spec.approves
    )


def _misbehaving(how: Misbehaviour, making: Making) -> Agent:
    return MisbehavingAgent(making.spec.name, how)


def _is_backend(entry: object) -> bool:
    return isinstance(entry, Backend) or callable(entry) or hasattr(entry, "answer")


BACKENDS: Registry[Any] = Registry("agents.backend", _is_backend, "aipo.backends")
BACKENDS.register(
    "remote",
    Backend(
        make=_remote,
        needs={"model": "qwen3-30b", "base_url": "http://localhost:8000/v1"},
        is_external=True,
    ),
)
BACKENDS.register("local", Backend(make=_local, needs={"model": "qwen3-30b"}, is_external=True))
BACKENDS.register("mcp", Backend(make=_mcp, is_external=True, recorded=frozenset({"mcp", "context"})))
BACKENDS.register(
    "oracle", Backend(make=_oracle, recorded=frozenset({"error_rate", "failure_rate", "latency_s"}))
)
for _how in Misbehaviour:
    BACKENDS.register(_how.value, Backend(make=partial(_misbehaving, _how)))


def backend_of(name: str) -> Backend:
    """Return a back end, also one of the user's own. Raises `RegistryError`."""
    found = BACKENDS[name]
    if isinstance(found, Backend):
        return found
    if hasattr(found, "answer") and not isinstance(found, type):
        return Backend(make=lambda making: cast(Agent, found))
    return Backend(make=lambda making: _own(found, name, making))


def _own(make: Callable[..., Any], name: str, making: Making) -> Agent:
    try:
        agent = make(making.spec, making.fields)
    except Exception as error:  # a bug in a user's code is told where its setting stands
        raise AgentSetupError(
            f"agents.{making.spec.name}: backend = {name!r} could not make an agent of its spec and its "
            f"settings: {error!r}"
        ) from error
    if not hasattr(agent, "answer"):
        raise AgentSetupError(
            f"agents.{making.spec.name}: backend = {name!r} made a {type(agent).__name__}, which cannot "
            "answer; return an aipo.agents.base.Agent"
        )
    return cast(Agent, agent)
