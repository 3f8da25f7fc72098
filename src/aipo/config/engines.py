"""Settings of what samples from the policy.

The defaults need no server.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from aipo.config.problems import Section


class EngineSettings(Section):
    """What samples from the policy: this process, or vLLM servers (docs/engines.md)."""

    renamed: ClassVar[Mapping[str, str]] = {"url": "urls"}

    name: str = Field(
        "transformers",
        description="`transformers`: in this process. `vllm`: servers, over HTTP. One of your own: "
        "`module:attribute` (CONTRIBUTING.md).",
    )
    urls: tuple[str, ...] = Field(
        ("http://127.0.0.1:8000",),
        min_length=1,
        description="vllm: servers that you started, each with a whole policy; not read with engine.start.",
    )
    start: bool = Field(False, description="vllm: start servers on this machine, and end them with the run.")
    servers: int = Field(1, ge=1, description="start: how many; groups of rollouts are dealt out to them.")
    devices: tuple[str, ...] = Field(
        (),
        description="start: the GPUs of each server, as in CUDA_VISIBLE_DEVICES ('4', or '4,5'); none: each "
        "sees what this process sees.",
    )
    command: tuple[str, ...] = Field(
        ("vllm", "serve"), min_length=1, description="start: what starts it; policy.model follows."
    )
    arguments: tuple[str, ...] = Field((), description="start: further arguments of the command.")
    environment: dict[str, str] = Field({}, description="start: environment variables for the servers.")
    start_timeout_s: float = Field(600.0, gt=0, description="start: until they must be healthy.")
    request_timeout_s: float = Field(
        600.0, gt=0, description="vllm: deadline of one request; passing it makes the rollout UNGRADED."
    )
    weights_timeout_s: float = Field(600.0, gt=0, description="vllm: deadline of one change of weights.")
    weights_folder: Path | None = Field(
        None, description="vllm: a folder that both sides see, for new weights; none: /dev/shm."
    )
    concurrency: int = Field(
        256, ge=1, description="vllm: requests to each server at the same time, those of all ranks together."
    )
    api_key_env: str = Field(
        "", description="vllm: name of the environment variable with the server's key; '': no key."
    )

    @field_validator("urls", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Take one address by itself as a list of one."""
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_each(self) -> "EngineSettings":
        if twice := next((url for url in self.urls if self.urls.count(url) > 1), ""):
            raise ValueError(f"engine.urls names {twice!r} twice; name each server once")
        if self.devices and len(self.devices) != self.servers:
            raise ValueError(
                f"engine.devices names the GPUs of {len(self.devices)}, but engine.servers = {self.servers}; "
                "name those of each server, or leave engine.devices out"
            )
        return self
