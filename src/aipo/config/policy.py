"""Settings of the policy: which model, what is trained of it, and what it computes in."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from aipo.config.problems import MayBeAuto, Section


class Precision(StrEnum):
    """What weights are kept in, and what forward passes compute in."""

    AUTO = "auto"
    """What suits the device; a run records which of the others it became."""
    FLOAT32 = "float32"
    BF16_MIXED = "bf16-mixed"
    """float32 weights, gradients and optimiser; products in bfloat16, by autocast."""
    BFLOAT16 = "bfloat16"
    """bfloat16 weights: for adapters, which stay float32 themselves."""


class PolicySettings(Section):
    """The policy: any Hugging Face causal LM."""

    renamed: ClassVar[Mapping[str, str]] = {"dtype": "precision"}

    model: str = Field(
        "", description="Folder or hub id of a causal LM with a tokenizer and a chat template."
    )
    precision: Annotated[Precision, MayBeAuto()] = Field(
        Precision.AUTO,
        description="What weights are kept in and forward passes compute in; log-probabilities and loss are "
        "float32 (docs/policies.md#precision). `auto`: on `cuda` `bf16-mixed`, with adapters `bfloat16`; "
        "elsewhere `float32`.",
    )
    tf32: bool = Field(
        False,
        description="cuda: products of float32 in TF32, which rounds their factors to 10 bits.",
    )
    attention: Literal["sdpa", "eager"] = Field(
        "sdpa", description="transformers' attention; GPT-OSS needs `eager`."
    )
    date: str = Field(
        "2024-07-26",
        pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$",
        description="Today, for chat templates that write it: the same on every day, so that a run can go on "
        "and policies can be compared.",
    )
    lora_rank: int = Field(
        0, ge=0, description="Train adapters of this rank beside frozen weights (LoRA); 0: all weights."
    )
    lora_alpha: float = Field(32.0, gt=0, description="What adapters add is scaled by this over the rank.")
    lora_targets: tuple[str, ...] = Field(
        (), description="Names of the linear layers that get adapters, as `q_proj`; (): all but the head."
    )
