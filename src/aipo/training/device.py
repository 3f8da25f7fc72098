"""Which device a run computes on and in which precision, decided before anything is computed.

A setting that is `auto` becomes what it was when the run began, or what suits the machine.
"""

import torch

from aipo.config.policy import PolicySettings, Precision
from aipo.config.settings import Settings

WEIGHTS = {
    Precision.FLOAT32: torch.float32,
    Precision.BF16_MIXED: torch.float32,
    Precision.BFLOAT16: torch.bfloat16,
}
"""What the policy's weights are kept in."""
PRODUCTS = {**WEIGHTS, Precision.BF16_MIXED: torch.bfloat16}
"""What its products are computed in."""


class DeviceError(ValueError):
    """The device is not there, or cannot compute so; the message names the field, the value and the fix."""


def settled(settings: Settings, begun: Settings | None = None) -> Settings:
    """Return the settings with what is `auto` decided. Raises `DeviceError`.

    `begun`: the settings that the run was begun with; it goes on with what they became.
    """
    run, policy = settings.run, settings.policy
    if run.device == "auto":
        device = begun.run.device if begun else "auto"
        run = run.model_copy(update={"device": the_device(device)})
    train = settings.train
    if train.gradient_checkpointing == "auto" and begun:
        train = train.model_copy(update={"gradient_checkpointing": begun.train.gradient_checkpointing})
    if policy.precision is Precision.AUTO and begun:
        policy = policy.model_copy(update={"precision": begun.policy.precision})
    refuse_device(run.device)
    policy = policy.model_copy(update={"precision": precision_on(policy, run.device)})
    _refuse_precision(policy, run.device)
    return settings.model_copy(update={"run": run, "policy": policy, "train": train})


def the_device(name: str) -> str:
    """Return a device's name, that of the machine's best one for `auto`."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision_on(policy: PolicySettings, device: str) -> Precision:
    """Return the precision of the settings, on this device where it is `auto`.

    bfloat16 weights would swallow small updates; frozen ones, beside adapters, get none.
    """
    if policy.precision is not Precision.AUTO:
        return policy.precision
    if not device.startswith("cuda") or not _has_bfloat16(device):
        return Precision.FLOAT32
    return Precision.BFLOAT16 if policy.lora_rank else Precision.BF16_MIXED


def refuse_device(device: str) -> None:
    """Raise `DeviceError` for a device that torch does not see."""
    kinds = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not kinds.get(device.partition(":")[0], True):
        there = ", ".join(kind for kind, is_there in kinds.items() if is_there)
        raise DeviceError(
            f"run.device = {device!r}, but torch sees {there}; set run.device = 'auto', or install torch's "
            "build for this GPU"
        )


def use_tf32(policy: PolicySettings) -> None:
    """Set whether this process computes products of float32 in TF32."""
    torch.set_float32_matmul_precision("high" if policy.tf32 else "highest")


def _refuse_precision(policy: PolicySettings, device: str) -> None:
    if PRODUCTS[policy.precision] is torch.bfloat16 and not _has_bfloat16(device):
        raise DeviceError(
            f"policy.precision = {policy.precision.value!r}, but run.device = {device!r} cannot compute in "
            "bfloat16; set policy.precision = 'float32'"
        )
    if policy.tf32 and not _has_tf32(device):
        raise DeviceError(
            f"policy.tf32 = true, but run.device = {device!r} has no TF32 (NVIDIA's Ampere and later have "
            "it); set policy.tf32 = false"
        )


def _has_bfloat16(device: str) -> bool:
    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        ones = torch.ones(1, 1, device=device, dtype=torch.bfloat16)
        return float(ones @ ones) == 1.0
    except (RuntimeError, TypeError):  # what torch raises depends on the device
        return False


def _has_tf32(device: str) -> bool:
    return device.startswith("cuda") and torch.cuda.get_device_capability(device)[0] >= 8
