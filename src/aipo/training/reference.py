"""The reference policy that KL holds a run to: the policy that the run began with, also after a resume.

It is `policy.model` as it is loaded, before any checkpoint is read. That it is the same at each start is
checked by the SHA-256 of its weights, which the run's folder keeps from the first start with a KL term on.
"""

import hashlib
import json
from copy import deepcopy

import torch
from transformers import PreTrainedModel

from aipo.config.settings import Settings
from aipo.training.changes import RunFolderError
from aipo.training.durable import write_whole
from aipo.training.lora import has_lora, is_adapter

REFERENCE = "reference.json"


def frozen_reference(settings: Settings, model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a copy of the starting policy; None where no KL term asks for it, or where adapters can be left
    out. Raises `ValueError` for a run that has no token to be held.

    Simplification: the copy is whole on each rank under DDP, in the precision of the policy.
    """
    if not settings.algorithm.kl_weight:
        return None
    if not settings.rollout.rollouts_per_prompt:
        raise ValueError(
            f"algorithm.kl_weight = {settings.algorithm.kl_weight:g} with rollout.rollouts_per_prompt = 0: "
            "KL is over tokens that the policy samples, and it samples none; set algorithm.kl_weight = 0"
        )
    return None if has_lora(model) else deepcopy(model).requires_grad_(False)


def weights_digest(model: PreTrainedModel) -> str:
    """Return the SHA-256 of names, shapes, precisions and bytes of the weights, adapters left out."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not is_adapter(name):
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_reference(settings: Settings, model: PreTrainedModel) -> None:
    """Write down which weights the reference has, or compare them with what is written.

    Raises `RunFolderError` for other weights than those that the run began with. Degenerate case: without a
    KL term there is no reference.
    """
    if not settings.algorithm.kl_weight:
        return
    path, digest = settings.run.output / REFERENCE, weights_digest(model)
    if not path.exists():
        write_whole(path, json.dumps({"model": settings.policy.model, "sha256": digest}, indent=1) + "\n")
        return
    begun = json.loads(path.read_text())["sha256"]
    if begun != digest:
        raise RunFolderError(
            f"policy.model = {settings.policy.model!r} has other weights than at the run's beginning "
            f"(SHA-256 {digest[:12]}, was {begun[:12]}; {path}), so that algorithm.kl_weight would hold the "
            "policy to another reference; put the model back, or begin anew in another run.output"
        )
