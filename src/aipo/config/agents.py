"""The settings of the agents: values for all of them, and a table for each that overrides them.

What an agent's own table leaves out is the common value. Nothing here holds a secret: a key's value is no
setting, and the environment is not read.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from aipo.agents.backends import BACKENDS
from aipo.agents.named import AGENTS
from aipo.agents.spec import AgentSpec
from aipo.config.mcp import McpSettings
from aipo.config.problems import Section, plain_url
from aipo.core.types import PAPER_AGENTS

TokenLimitField = Literal["max_tokens", "max_completion_tokens"]
OmittedField = Literal["temperature", "top_p", "seed", "max_tokens"]
Context = Literal["request", "problem+request", "problem+rollout+request"]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Price = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
AtLeast1 = Annotated[int, Field(ge=1)]
AtLeast0 = Annotated[int, Field(ge=0)]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_URL = "http://localhost:8000/v1"
_OURS = {"model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed"}
_UNREAD = {"stream", "stream_options", "n", "tools", "functions", "logprobs"}
"""What would change the form of a response."""


class AgentFields(BaseModel):
    """What one agent is made of, every field resolved."""

    backend: str
    base_url: str
    model: str
    api_key_env: str
    temperature: float
    top_p: float
    max_reply_tokens: int
    token_limit_field: TokenLimitField
    extra_body: dict[str, Any]
    omit: tuple[OmittedField, ...]
    system_role: bool
    concurrency: int
    retries: int
    retry_wait_s: float
    price_prompt: float
    price_completion: float
    context: Context
    device: str
    error_rate: float
    failure_rate: float
    latency_s: float
    mcp: McpSettings

    @property
    def server(self) -> tuple[str, str]:
        """Address and key: agents that have both in common share a server."""
        return self.mcp.address if self.backend == "mcp" else self.base_url, self.api_key_env


class _Checked(Section):
    """Checks that the common values and an agent's own share."""

    @field_validator("backend", check_fields=False)
    @classmethod
    def _known_backend(cls, value: str | None) -> str | None:
        return value if value is None else BACKENDS.check(value)

    @field_validator("base_url", check_fields=False)
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        return value and plain_url(value, f"base_url = {_URL!r}")

    @field_validator("extra_body", check_fields=False)
    @classmethod
    def _only_additions(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if ours := sorted(_OURS & set(value or {})):
            raise ValueError(f"holds {ours}, which settings of their own say; take them out")
        if unread := sorted(_UNREAD & set(value or {})):
            raise ValueError(f"holds {unread}, which would change the form of responses; take them out")
        return value

    @field_validator("api_key_env", check_fields=False)
    @classmethod
    def _name_of_a_variable(cls, value: str | None) -> str | None:
        if value and not _VARIABLE.fullmatch(value):
            # Nor here: whoever wrote the key itself into the recipe must not find it in a log.
            raise ValueError(
                "must be the name of an environment variable such as AGENTS_API_KEY, not the key itself"
            )
        return value


class AgentOverrides(_Checked):
    """One agent's own values; what is not set is `[agents]`'s."""

    backend: str | None = Field(None, description="None: `agents.backend`; so for every field here.")
    base_url: str | None = Field(None, description="remote: see `agents.base_url`.")
    model: str | None = Field(None, description="remote, local: see `agents.model`.")
    api_key_env: str | None = Field(
        None,
        description="remote: see `agents.api_key_env`; none beside a base_url of its own: no key is sent.",
    )
    temperature: Temperature | None = Field(None, description="remote, local.")
    top_p: TopP | None = Field(None, description="remote, local.")
    max_reply_tokens: AtLeast1 | None = Field(None, description="remote, local.")
    token_limit_field: TokenLimitField | None = Field(None, description="remote.")
    extra_body: dict[str, Any] | None = Field(None, description="remote: in place of the common one.")
    omit: tuple[OmittedField, ...] | None = Field(None, description="remote: in place of the common ones.")
    system_role: bool | None = Field(None, description="remote, local.")
    concurrency: AtLeast1 | None = Field(None, description="remote.")
    retries: AtLeast0 | None = Field(None, description="remote.")
    retry_wait_s: Seconds | None = Field(None, description="remote.")
    price_prompt: Price | None = Field(None, description="remote.")
    price_completion: Price | None = Field(None, description="remote.")
    context: Context | None = Field(None, description="remote, local.")
    device: str | None = Field(None, description="local.")
    error_rate: Share | None = Field(None, description="oracle.")
    failure_rate: Share | None = Field(None, description="oracle.")
    latency_s: Seconds | None = Field(None, description="oracle.")
    mcp: McpSettings = Field(McpSettings(), description="mcp: the server, its tool and how it is called.")


class AgentSettings(_Checked):
    """Who answers consultations. `[agents.NAME]` overrides these values for the agent of that name."""

    model_config = ConfigDict(extra="allow")

    enabled: tuple[str, ...] = Field(
        PAPER_AGENTS,
        description="Agents the policy may consult, your own as `module:attribute`; [] trains a plain RLVR "
        "algorithm.",
    )
    backend: str = Field(
        "remote",
        description="`remote`: an OpenAI-compatible endpoint. `local`: a transformers model in this process. "
        "`mcp`: a tool of an MCP server (`agents.NAME.mcp`). Scripted: `oracle` (by the task itself), "
        "`dead`, `garbage`, `hostile` (to rehearse). Your own: `module:attribute`.",
    )
    base_url: str = Field("", description=f"remote: address of the endpoint, as in `{_URL}`.")
    model: str = Field("", description="remote: the model's name there. local: its folder or hub id.")
    api_key_env: str = Field(
        "", description="remote: environment variable that holds the key; '': none is sent."
    )
    temperature: Temperature = Field(0.7, description="remote, local: of replies.")
    top_p: TopP = Field(0.8, description="remote, local: of replies.")
    max_reply_tokens: AtLeast1 = Field(
        1024, description="remote, local: tokens that an agent may write, its thinking included."
    )
    token_limit_field: TokenLimitField = Field(
        "max_tokens",
        description="remote: what a request calls max_reply_tokens; some hosted models want the other.",
    )
    extra_body: dict[str, Any] = Field(
        {},
        description="remote: more fields of a request, as in "
        "`{ chat_template_kwargs = { enable_thinking = false } }`; recorded, so no place for a secret.",
    )
    omit: tuple[OmittedField, ...] = Field(
        (),
        description='remote: fields that a server forbids and requests leave out, as in `["temperature"]`.',
    )
    system_role: bool = Field(
        True,
        description="remote, local: false puts the system text into the user's message, for models without "
        "a system role.",
    )
    concurrency: AtLeast1 = Field(
        16,
        description="remote: requests at a time to one endpoint; agents that share it share them. local: "
        "most that are answered in one forward pass.",
    )
    retries: AtLeast0 = Field(
        3, description="remote: attempts after the first, on 408, 409, 429, 5xx and lost connections."
    )
    retry_wait_s: Seconds = Field(
        0.5, description="remote: longest first wait; doubled each time. The server's Retry-After wins."
    )
    price_prompt: Price = Field(0.0, description="remote: price of a million prompt tokens.")
    price_completion: Price = Field(0.0, description="remote: price of a million completion tokens.")
    context: Context = Field("problem+rollout+request", description="remote, local: what an agent is shown.")
    device: str = Field("cpu", description="local: where its model stands.")
    error_rate: Share = Field(0.0, description="oracle: share of replies that are wrong.")
    failure_rate: Share = Field(0.0, description="oracle: share of consultations that raise an error.")
    latency_s: Seconds = Field(0.0, description="oracle: seconds before a reply.")
    timeout_s: float = Field(
        30.0, gt=0, description="Deadline of one consultation, retries included; passing it is TIMEOUT."
    )
    max_reply_bytes: int = Field(
        262_144, ge=1024, description="remote: a longer response is not read on; the consultation fails."
    )
    check_at_start: bool = Field(
        True, description="remote, local: `aipo train` asks each agent once before it begins."
    )
    cache: bool = Field(True, description="remote, local: keep replies on disk; `--no-cache` goes without.")
    cache_folder: Path = Field(
        Path("runs/agent-cache"), description="Folder of the cache; several runs may share it."
    )
    cache_megabytes: AtLeast1 = Field(
        1024, description="Size limit of the cache; what was not used for longest goes first."
    )
    __pydantic_extra__: dict[str, AgentOverrides]

    @field_validator("enabled")
    @classmethod
    def _agents(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(AGENTS.check, value))

    @model_validator(mode="after")
    def _tables(self) -> "AgentSettings":
        # An agent of one's own is imported when it is needed: the records of a run must load without it.
        if not any(":" in name for name in self.enabled):
            self.refuse_other_names("agents", self.tables, {*AGENTS, *self.enabled})
        return self

    @staticmethod
    def refuse_other_names(table: str, given: Iterable[str], known: Iterable[str]) -> None:
        """Raise `ValueError` where a table has an entry for an agent that there is not."""
        names = sorted(known)
        for name in given:
            if name not in names:
                near = get_close_matches(name, names, 1)
                hint = f"did you mean `{table}.{near[0]}`?" if near else f"there are: {', '.join(names)}"
                raise ValueError(f"`{table}.{name}`: unknown key; {hint}")

    @property
    def tables(self) -> dict[str, AgentOverrides]:
        """The agents' own tables, by name."""
        return self.__pydantic_extra__ or {}

    def specs(self) -> tuple[AgentSpec, ...]:
        """Return the enabled agents, those of your own imported. Raises `RegistryError`."""
        return tuple(AGENTS[name] for name in self.enabled)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the enabled agents, as their specs say."""
        return tuple(spec.name for spec in self.specs())

    def of(self, agent: str) -> AgentFields:
        """Return an agent's values: its own where set, else the common ones.

        The common key goes to the common address only: an agent with an address of its own names its own key.

        >>> AgentSettings(model="a", verify=AgentOverrides(model="b")).of("verify").model
        'b'
        """
        return self.resolved(self.tables.get(agent, AgentOverrides()))

    def resolved(self, own: AgentOverrides) -> AgentFields:
        """Return the values of an agent whose own ones are given, as `of` does."""
        values = {name: getattr(self, name) for name in AgentFields.model_fields if name != "mcp"}
        if own.base_url not in (None, self.base_url):
            values["api_key_env"] = ""
        return AgentFields(**values | own.model_dump(exclude_none=True))
