"""What a recipe needs of memory is known beforehand; what cannot fit is refused with the way out."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from aipo.assembly import memory
from aipo.assembly.engines import build_engine
from aipo.assembly.memory import MemoryNeedError, footprint, memory_line, recipe_memory
from aipo.config.loader import load_settings
from aipo.config.recipes import packaged_recipes
from aipo.config.settings import Settings
from aipo.engines.base import Completion, GenerationRequest
from aipo.engines.transformers import TransformersEngine
from aipo.planning.memory import activation_bytes_per_token
from aipo.training.log_probs import PolicyForward
from support.policies import counting_recipe, random_policy, run_cli


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = {"model": str(random_policy(tmp_path_factory, "llama3"))}
    return counting_recipe(tmp_path, policy=policy, run={"output": str(tmp_path / "run")})


def settings_of(recipe: Path, *overrides: str) -> Settings:
    return load_settings(recipe, overrides)


def test_state_is_counted_from_the_policy_itself_and_adapters_train_little(recipe: Path) -> None:
    settings = settings_of(recipe)
    model = AutoModelForCausalLM.from_pretrained(settings.policy.model)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    whole = recipe_memory(settings)
    assert (whole.weights, whole.gradients, whole.optimiser) == (size, size, 2 * size)
    adapters = recipe_memory(settings_of(recipe, "policy.lora_rank=1"))
    assert whole.weights < adapters.weights < 1.5 * size and adapters.optimiser < size / 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_keeps(recipe: Path, checkpointing: bool) -> None:
    """Of a forward pass of our own; the vocabulary is so small that its logits hardly count."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
    )
    model = AutoModelForCausalLM.from_config(config)
    forward = PolicyForward(model, gradient_checkpointing=checkpointing)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward(torch.arange(512).view(2, 256) % 32, 1.0)
    measured = sum(storage.nbytes() for storage in kept.values())
    settings = settings_of(recipe, f"train.gradient_checkpointing={str(checkpointing).lower()}")
    estimated = 512 * activation_bytes_per_token(footprint(settings, model))
    if checkpointing:  # the one layer that is computed again is not there yet
        assert measured < estimated < measured + 512 * 40 * 96 * 4
    else:
        assert estimated == pytest.approx(measured, rel=0.1)


def test_what_cannot_fit_is_refused_with_a_setting_that_makes_it_fit(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = ("rollout.max_response_tokens=30000", "rollout.cache_gb=100")
    settings = settings_of(recipe, *large)
    need = recipe_memory(settings).update
    saved = recipe_memory(settings_of(recipe, *large, "train.gradient_checkpointing=true")).update
    monkeypatch.setattr(memory, "free_bytes", lambda device: int((need + saved) / 2))
    monkeypatch.setattr(memory, "slots_that_fit", lambda *_: 1)
    with pytest.raises(MemoryNeedError, match=r"does not fit: set train\.gradient_checkpointing = true"):
        memory_line(settings)
    assert "update" in memory_line(settings_of(recipe, *large, "train.gradient_checkpointing=true"))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(MemoryNeedError, match="take a smaller policy, or a device with more memory"):
        memory_line(settings)


def test_training_says_what_it_will_need_before_anything_is_loaded(recipe: Path) -> None:
    lines = run_cli("train", recipe).output.splitlines()
    said = next(i for i, line in enumerate(lines) if line.startswith("memory, estimated: update"))
    assert "optimiser" in lines[said] and "cache" in lines[said]
    assert said < next(i for i, line in enumerate(lines) if line.startswith("loading"))


PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
}
"""From the config.json of each on the hub; weights are not needed."""
H100_GB, MOST_GB = 80, 72


@pytest.mark.parametrize("name", [name for name in packaged_recipes() if name.startswith("gpu/")])
def test_a_gpu_recipe_fits_its_gpu_and_says_what_it_takes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(H100_GB * memory.GB))
    (tmp_path / "train.jsonl").write_text("")
    recipe = packaged_recipes()[name]
    task = f"task.train_file={tmp_path / 'train.jsonl'}"
    settings = load_settings(recipe, [task])
    Qwen2Config(**PUBLISHED[settings.policy.model]).save_pretrained(tmp_path)
    # What `auto` becomes on an H100; this machine may have none.
    precision = "bfloat16" if settings.policy.lora_rank else "bf16-mixed"
    if settings.policy.precision != "auto":
        precision = settings.policy.precision
    need = recipe_memory(
        load_settings(recipe, [task, f"policy.model={tmp_path}", f"policy.precision={precision}"])
    )
    assert need.peak < MOST_GB * memory.GB
    said = f"update {need.update / memory.GB:.0f} GB, sampling {need.sampling / memory.GB:.0f} GB"
    assert said in recipe.read_text(), said


def engine_of(settings: Settings) -> TransformersEngine:
    model = AutoModelForCausalLM.from_pretrained(settings.policy.model)
    engine = build_engine(settings, model, AutoTokenizer.from_pretrained(settings.policy.model), None).engine
    assert isinstance(engine, TransformersEngine)
    return engine


def test_a_bounded_cache_makes_rollouts_wait_and_changes_none(recipe: Path) -> None:
    async def sampled(engine: TransformersEngine) -> tuple[list[Completion], int]:
        most = 0

        async def one(number: int) -> Completion:
            nonlocal most
            prompt = tuple(range(20, 40))
            completion = await engine.generate(
                GenerationRequest(session=f"s{number}", prefix_ids=prompt, max_new_tokens=12, seed=number)
            )
            most = max(most, engine.cache_bytes)
            await engine.release(f"s{number}")
            return completion

        return list(await asyncio.gather(*map(one, range(8)))), most

    free, bytes_free = asyncio.run(sampled(engine_of(settings_of(recipe))))
    one_gb = recipe_memory(settings_of(recipe, "rollout.slots=1")).cache / memory.GB
    bound = settings_of(recipe, f"rollout.cache_gb={2.5 * one_gb}")
    bounded, bytes_bounded = asyncio.run(sampled(engine_of(bound)))
    assert [c.ids for c in bounded] == [c.ids for c in free]
    assert bytes_bounded <= 2.5e9 * one_gb and bytes_bounded < bytes_free
    below = settings_of(recipe, f"rollout.cache_gb={0.9 * one_gb}")
    with pytest.raises(MemoryNeedError, match=r"rollout\.cache_gb = .* is below one rollout of"):
        memory_line(below)
