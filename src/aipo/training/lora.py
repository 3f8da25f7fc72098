"""LoRA: small trained matrices beside frozen weights, so that a policy's optimiser state fits.

Adapters that were just added change no output, and what is merged is what was sampled from but for one
rounding of each weight.

The adapters are peft's (LoRA, arXiv 2106.09685), put into the model in place: it stays a transformers model,
so engine, checkpoints and self-test need not know. They are float32 whatever the frozen weights are, because
updates of 1e-6 are lost in bfloat16. No dropout: sampler and trainer must be the same policy. peft, which
takes a second to import, is imported where adapters are asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from aipo.config.settings import PolicySettings

_NAME = "default"
_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SEED = 0
"""Of the adapters' random half; the other is zero. The same for all runs: rollouts make them differ."""


def add_lora(model: PreTrainedModel, settings: PolicySettings) -> None:
    """Freeze the model and put adapters beside its linear layers.

    Raises `ValueError` for unknown layers, and for those whose adapters could not be exported.
    """
    from peft import LoraConfig

    targets = list(settings.lora_targets) or "all-linear"
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # peft divides it by the rank, nothing else
        target_modules=targets,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        try:
            model.add_adapter(config, _NAME)
        except ValueError as error:
            raise ValueError(
                f"policy.lora_targets = {list(settings.lora_targets)}: {error}; it has linear layers named "
                f"{', '.join(_linear_names(model))}"
            ) from error
    _refuse_unmergeable(model, settings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        if is_adapter(name):
            parameter.data = parameter.data.float()
    model.eval()


def _refuse_unmergeable(model: PreTrainedModel, settings: PolicySettings) -> None:
    """Raise for an embedding, and for a head that shares its weight with one: merged, both would change."""
    from peft.tuners.lora import LoraLayer

    weights = list(model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        base: Any = module.base_layer
        sharing = [other for other, weight in weights if weight is base.weight]
        if isinstance(base, torch.nn.Embedding) or len(sharing) > 1:
            why = "is an embedding" if len(sharing) < 2 else "shares its weight with another layer"
            raise ValueError(
                f"policy.lora_targets = {list(settings.lora_targets)}: {name} {why}, and adapters beside it "
                "could not be merged when the policy is exported; leave it out"
            )


def has_lora(model: PreTrainedModel) -> bool:
    """Say whether adapters were added."""
    return any(is_adapter(name) for name, _ in model.named_parameters())


@contextmanager
def without_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Within the block the model is the one that adapters were added to, the starting policy.

    peft's own `disable_adapters` would also switch the gradients of adapters off and on, under DDP and FSDP.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def read_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Take the adapters that `save_pretrained` wrote. Raises `ValueError` for those of other layers."""
    found = {
        key.removeprefix(_PREFIX).replace(".weight", f".{_NAME}.weight"): tensor
        for key, tensor in load_file(folder / _FILE).items()
    }
    own = {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}
    if other := found.keys() ^ own.keys():
        raise ValueError(f"{folder / _FILE}: adapters of other layers, as {sorted(other)[0]}")
    with torch.no_grad():
        for name, parameter in own.items():
            if found[name].shape != parameter.shape:
                raise ValueError(f"{folder / _FILE}: {name} has another rank or size")
            parameter.copy_(found[name])


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Return a plain model with the same outputs, to be saved; it shares what was not adapted with `model`.

    It cannot run: only what is saved is there.
    """
    from peft.tuners.lora import LoraLayer

    weights: dict[str, Tensor] = {}
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for key, tensor in model.state_dict().items():
        if not is_adapter(key):
            weights[key.replace(".base_layer.", ".")] = tensor
    with torch.no_grad():
        for name, module in adapted.items():
            own: Any = module
            frozen = weights[f"{name}.weight"]
            change = own.get_delta_weight(_NAME).float()
            weights[f"{name}.weight"] = (frozen.float() + change).to(frozen.dtype)
    with torch.device("meta"):
        plain: PreTrainedModel = type(model)(model.config)
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    # How names and layouts were changed when the model was loaded, to be changed back when it is saved.
    if conversions := getattr(model, "_weight_conversions", None):
        plain._weight_conversions = conversions
    return plain


def is_adapter(name: str) -> bool:
    """Say whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def _linear_names(model: PreTrainedModel) -> list[str]:
    layers = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return sorted({name.rpartition(".")[2] for name in layers})
