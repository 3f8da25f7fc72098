"""Settings of what samples from the policy.

The defaults need no server.
"""

from pathlib import Path

from pydantic import Field

from aipo.config.problems import Section


class EngineSettings(Section):
    """What samples from the policy: this process, or a vLLM server (docs/engines.md)."""

    name: str = Field(
        "transformers",
        description="`transformers`: in this process. `vllm`: a server, over HTTP. One of your own: "
        "`module:attribute` (CONTRIBUTING.md).",
    )
    url: str = Field(
        "http://127.0.0.1:8000", description="vllm: the server that you started; not read with engine.start."
    )
    start: bool = Field(False, description="vllm: start a server on this machine, and end it with the run.")
    command: tuple[str, ...] = Field(
        ("vllm", "serve"), min_length=1, description="start: what starts it; policy.model follows."
    )
    arguments: tuple[str, ...] = Field((), description="start: further arguments of the command.")
    environment: dict[str, str] = Field({}, description="start: environment variables for the server.")
    start_timeout_s: float = Field(600.0, gt=0, description="start: until it must be healthy.")
    request_timeout_s: float = Field(
        600.0, gt=0, description="vllm: deadline of one request; passing it makes the rollout UNGRADED."
    )
    weights_timeout_s: float = Field(600.0, gt=0, description="vllm: deadline of one change of weights.")
    weights_folder: Path | None = Field(
        None, description="vllm: a folder that both sides see, for new weights; none: /dev/shm."
    )
    concurrency: int = Field(256, ge=1, description="vllm: requests at the same time.")
    api_key_env: str = Field(
        "", description="vllm: name of the environment variable with the server's key; '': no key."
    )
