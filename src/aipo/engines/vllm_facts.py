"""What a policy server is, and whether it is the one that was meant: asked before anything is spent.

An unsuitable server is one `EngineError` with the fix; what is not asked here (its weights) is given to it,
and compared by its log-probabilities, later.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from aipo.engines.base import EngineError
from aipo.engines.link import HttpLink

NO_WEIGHTS = "default"
"""The stamp of a server that was given no weights yet."""
WEIGHTS_MARK, ADAPTERS_MARK = "aipo-", "aipo-lora-"
"""How the stamps begin that we give: to a server with whole weights, and with its own beside adapters."""
LOAD_ADAPTER = "/v1/load_lora_adapter"
NEEDED = {"/v1/completions", "/tokenize", "/collective_rpc", "/reset_prefix_cache"}
NEEDED |= {"/weight_info", "/update_weight_version"}
KNOWN_VERSION = "0.32.0"
"""The version that all was run on."""
MODES = ("raw_logprobs", "processed_logprobs")
SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SAMPLE = "1 + 12 = 13?\n\nSo <b>x</b>, \u201cnaïve\u201d 你好 \U0001f600 "
"""Text in which tokenizers of different models differ: digits, spaces, line ends, marks, scripts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What the server says of itself."""

    url: str
    model: str
    """The name under which it serves."""
    source: str
    """The folder or hub id that it loaded."""
    max_tokens: int
    """Of a prompt and its continuation together."""
    dtype: str
    logprobs_mode: str
    takes_adapters: bool
    """Whether LoRA adapters can be loaded beside the weights that it began with, and still has."""


async def read_facts(link: HttpLink) -> ServerFacts:
    """Ask. Raises `EngineError` for a server that is not vLLM, or not started as docs/engines.md says."""
    listed = await link.get("/v1/models")
    try:
        first = listed["data"][0]
        name, root = str(first["id"]), str(first.get("root") or first["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise EngineError(f"{link.url} lists no model; is it a vLLM server?") from error
    try:
        info = await link.get("/server_info?config_format=json")
        whole: Mapping[str, Any] = info["vllm_config"]
        config: Mapping[str, Any] = whole["model_config"]
        mode, dtype, longest = config["logprobs_mode"], config["dtype"], config["max_model_len"]
    except (EngineError, KeyError, TypeError) as error:
        raise EngineError(
            f"policy server {link.url} does not say how it was started ({error}); start vLLM with the "
            "environment variable VLLM_SERVER_DEV_MODE=1, which opens /server_info and /collective_rpc "
            "(docs/engines.md)"
        ) from error
    if mode not in MODES:
        raise EngineError(
            f"policy server {link.url} runs with --logprobs-mode {mode}; start it with {' or '.join(MODES)}"
        )
    paths = await _paths(link)
    await _refuse_lacking(link, paths)
    scheduler, device = whole.get("scheduler_config") or {}, whole.get("device_config") or {}
    if "cpu" in str(device) and dict(scheduler).get("enable_chunked_prefill"):
        raise EngineError(
            f"policy server {link.url} runs on a CPU with chunked prefill, where a prompt that is computed "
            "in parts kills the server if its draws have a seed; start it with --no-enable-chunked-prefill"
        )
    return ServerFacts(
        url=link.url,
        model=name,
        source=root,
        max_tokens=int(longest),
        dtype=str(dtype).removeprefix("torch."),
        logprobs_mode=str(mode),
        takes_adapters=bool(whole.get("lora_config")) and LOAD_ADAPTER in paths and await _is_itself(link),
    )


async def _refuse_lacking(link: HttpLink, paths: Collection[str]) -> None:
    """Raise `EngineError` for a version without what aipo asks for. Degenerate case: it lists nothing."""
    lacking = sorted(NEEDED - set(paths)) if paths else []
    if lacking:
        told = await link.get("/version")
        version = told.get("version") if isinstance(told, Mapping) else None
        raise EngineError(
            f"policy server {link.url} is vLLM {version or 'of an unknown version'}, which lacks "
            f"{', '.join(lacking)}; take {KNOWN_VERSION}, which has all that is needed (docs/engines.md)"
        )


async def _is_itself(link: HttpLink) -> bool:
    """Say whether it was given no whole weights since it began."""
    told = await link.get("/weight_info")
    version = str(told.get("weight_version")) if isinstance(told, Mapping) else ""
    return version == NO_WEIGHTS or version.startswith(ADAPTERS_MARK)


async def _paths(link: HttpLink) -> Collection[str]:
    """Return what the server can be asked, by its own description; nothing where it gives none."""
    try:
        described = await link.get("/openapi.json")
        return set(described["paths"])
    except (EngineError, KeyError, TypeError):
        return ()


async def refuse_other_policy(
    link: HttpLink,
    facts: ServerFacts,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    tags: Sequence[str],
) -> None:
    """Raise `EngineError` where the server plainly serves another model or tokenizer than the trainer's."""
    text = SAMPLE + "".join(tags)
    answer = await link.post("/tokenize", {"prompt": text, "add_special_tokens": False})
    theirs = answer.get("tokens") if isinstance(answer, Mapping) else None
    ours = list(tokenizer.encode(text, add_special_tokens=False))
    fix = f"serve the folder or hub id of policy.model, or set policy.model = {facts.source!r}"
    if theirs != ours:
        raise EngineError(
            f"policy server {link.url} serves {facts.source!r}, whose tokenizer is not policy.model's (it "
            f"splits a sample into {len(theirs or [])} ids, policy.model's into {len(ours)}, or into "
            f"others); {fix}"
        )
    for name, other in _shape(Path(facts.source)).items():
        own = getattr(config, name, other)
        if own != other:
            raise EngineError(
                f"policy server {link.url} serves {facts.source!r} with {name} = {other}, policy.model has "
                f"{own}; {fix}"
            )


def _shape(folder: Path) -> dict[str, object]:
    """Return the sizes of the served model where its folder can be read here; else nothing."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return {name: config[name] for name in SHAPE if isinstance(config, dict) and name in config}
