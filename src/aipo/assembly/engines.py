"""Which engine stands behind `engine.name`: built, connected, compared with policy.model, given its weights.

An engine that cannot serve the settings is one `ValueError` with the fix, and leaves no process.
"""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from aipo.assembly.engine import EngineRequest as EngineRequest
from aipo.assembly.engine import EngineSetupError as EngineSetupError
from aipo.assembly.engine import EngineSpec as EngineSpec
from aipo.assembly.engine import PolicyEngine as PolicyEngine
from aipo.assembly.memory import footprint, free_bytes, slots_that_fit
from aipo.assembly.vllm import make_vllm
from aipo.config.settings import Settings
from aipo.core.registry import Registry
from aipo.engines.base import Engine
from aipo.engines.precision import compute_dtype
from aipo.engines.transformers import TransformersEngine
from aipo.training.ranks import ALONE, Ranks

ENGINES = Registry[EngineSpec]("engine.name", EngineSpec, "aipo.engines")


def build_engine(
    settings: Settings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    log_folder: Path | None,
    ranks: Ranks = ALONE,
) -> PolicyEngine:
    """Return the engine of the settings, ready to sample from `model`'s weights; on all `ranks` at once.

    Raises `EngineSetupError`, and `RegistryError` for a name that stands for no engine.
    """
    request = EngineRequest(
        settings=settings, model=model, tokenizer=tokenizer, log_folder=log_folder, ranks=ranks
    )
    made = ENGINES[settings.engine.name].make(request)
    if isinstance(made, PolicyEngine):
        return made
    dtype = str(compute_dtype(model)).removeprefix("torch.")
    return PolicyEngine(engine=made, dtype=dtype, close=lambda: None)


def _transformers(request: EngineRequest) -> Engine:
    settings, model = request.settings, request.model
    slots = slots_that_fit(settings, footprint(settings, model), free_bytes(settings.run.device))
    return TransformersEngine(request.model, request.tokenizer, slots=slots, capacity=request.capacity)


ENGINES.register("transformers", EngineSpec(make=_transformers, in_process=True))
ENGINES.register("vllm", EngineSpec(make=make_vllm, shared=True))
