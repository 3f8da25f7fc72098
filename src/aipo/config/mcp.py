"""The settings of an agent that is a tool of an MCP server: which server, which tool, which arguments."""

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from aipo.config.problems import Section, plain_url

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class McpSettings(Section):
    """A tool of an MCP server, for `backend = "mcp"`: a program over its standard streams, or an address."""

    command: str = Field("", description="The server as a program: what is started, once for a run.")
    args: tuple[str, ...] = Field((), description="Its arguments.")
    env: dict[str, str] = Field(
        {}, description="Environment variables for it, recorded with the run: no place for a secret."
    )
    env_from: tuple[str, ...] = Field(
        (), description="Names of environment variables of this process that are handed on; not recorded."
    )
    url: str = Field("", description="Or its address (streamable HTTP), as in `http://localhost:8000/mcp`.")
    tool: str = Field("", description="The tool's name there.")
    argument: str = Field(
        "", description="Which argument takes the request. '': the only one that the tool requires."
    )
    arguments: dict[str, Any] = Field({}, description="The tool's other arguments, the same in every call.")

    @property
    def address(self) -> str:
        """The server, whatever tool of it is called: agents that have it in common share a connection."""
        return self.model_dump_json(exclude={"tool", "argument", "arguments"})

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        return value and plain_url(value, "url = 'http://localhost:8000/mcp'")

    @field_validator("env_from")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not _VARIABLE.fullmatch(name) for name in value):
            raise ValueError("must be names of environment variables such as SEARCH_KEY, not their values")
        return value

    @model_validator(mode="after")
    def _one_server(self) -> "McpSettings":
        if self.command and self.url:
            raise ValueError(
                f"command = {self.command!r} and url = {self.url!r} are two servers; leave one of them out"
            )
        return self
