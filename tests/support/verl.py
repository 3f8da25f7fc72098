"""What the tests on verl share: verl's configuration of a small recipe, and a scripted client of servers."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.workers.rollout.replica import TokenOutput

from aipo.agents.base import Agent
from aipo.config.cluster import ClusterSettings
from aipo.config.loader import load_settings
from aipo.integrations.verl import agent_loop
from aipo.integrations.verl.agent_loop import AipoAgentLoop
from aipo.integrations.verl.command import yaml_of
from aipo.integrations.verl.config import verl_config

OVERRIDES = (
    "task.name=leg_counting",
    "agents.backend=oracle",
    "consult.max_feedback_tokens=12",
    "consult.consulting_prompt=check",
    "consult.solo_prompt=of",
    "rollout.rollouts_per_prompt=4",
    "rollout.max_prompt_tokens=64",
    "rollout.max_response_tokens=64",
    "train.prompts_per_step=2",
    "train.minibatches_per_step=1",
)
ROW = {
    "extra_info": {"problem": {"id": "p1", "text": "dogs 2 ;", "gold": "8", "stratum": "easy"}},
    "uid": "u",
    "session_id": 0,
    "global_steps": 3,
}
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "logprobs": True}


def verls_configuration(folder: Path, policy: Path, *overrides: str) -> DictConfig:
    """Return verl's whole configuration of a small recipe, as its own command composes it."""
    settings = load_settings(None, [*OVERRIDES, f"policy.model={policy}", *overrides])
    cluster = ClusterSettings(gpus_per_node=1, agent_processes=1, tokens_per_gpu=256, data_folder=folder)
    (folder / "aipo_verl.yaml").write_text(yaml_of(verl_config(settings, cluster)))
    with initialize_config_dir(str(folder.resolve()), version_base=None):
        return compose("aipo_verl")


class ScriptedClient:
    """A `LLMServerClient` that says given ids in one session, up to a stop string, and keeps requests."""

    def __init__(self, tokenizer: Any, ids: Sequence[int]) -> None:
        self._tokenizer, self._ids, self._said = tokenizer, list(ids), 0
        self.requests: list[tuple[str, list[int], dict[str, Any]]] = []
        self.change: Callable[[TokenOutput], TokenOutput] = lambda answer: answer

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        await asyncio.sleep(0)
        self.requests.append((request_id, list(prompt_ids), dict(sampling_params)))
        ids: list[int] = []
        while len(ids) < sampling_params["max_tokens"]:
            more = self._ids[self._said :] or [self._tokenizer.eos_token_id]
            ids.append(more[0])
            self._said += 1
            text = self._tokenizer.decode(ids)
            if ids[-1] == self._tokenizer.eos_token_id:
                break
            if any(stop in text for stop in sampling_params.get("stop", ())):
                break
        log_probs = [-0.01 * (len(prompt_ids) + i) for i in range(len(ids))]
        extra = {"min_global_steps": 2, "max_global_steps": 3}
        return self.change(
            TokenOutput(token_ids=ids, log_probs=log_probs, stop_reason="completed", extra_fields=extra)
        )


def loop_of(
    config: DictConfig, tokenizer: Any, client: Any, kind: type[AipoAgentLoop] = AipoAgentLoop
) -> AipoAgentLoop:
    """Make the loop as verl's worker does, once for a rollout."""
    from verl.utils.dataset.rl_dataset import RLHFDataset

    return kind(
        trainer_config=DictConfigWrap(config),
        server_manager=client,
        tokenizer=tokenizer,
        processor=None,
        dataset_cls=RLHFDataset,
        data_config=DictConfigWrap(config.data),
        hf_model_type="qwen2",
        tools=None,
    )


def with_agents(config: DictConfig, agents: Any) -> DictConfig:
    """Let the loop take agents of a test's own: `aipo.parts` names `own_parts`, which reads `OWN`."""
    global OWN
    OWN = agents
    with open_dict(config):
        config.aipo.parts = f"{__name__}:own_parts"
    return config


OWN: dict[Any, Agent] = {}


def own_parts(table: Any, tokenizer: Any, processes: int) -> Any:
    """Build the package's own parts with agents of a test's own."""
    from dataclasses import replace

    from aipo.integrations.verl.parts import build

    parts = build(table, tokenizer, processes)
    return replace(parts, consult=replace(parts.consult, agents=OWN))


def forget_parts() -> None:
    """Let the next loop build its parts anew."""
    from aipo.integrations.verl import parts

    parts._BUILT.clear()
    agent_loop._CHECKED.clear()
