"""The entries of the CPU tasks: each has a task, an oracle, and a supervised start from a curriculum."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from aipo.core.types import PAPER_AGENTS
from aipo.tasks.base import Start, StartRequest, TaskSpec, Wording
from aipo.tasks.cpu.curriculum import Curriculum
from aipo.tasks.cpu.leg_counting.oracle import LegCountingOracle
from aipo.tasks.cpu.leg_counting.task import LONG, SHORT, LegCountingTask
from aipo.tasks.cpu.leg_counting.traces import LegCountingCurriculum
from aipo.tasks.cpu.products.oracle import ProductsOracle
from aipo.tasks.cpu.products.task import ProductsTask
from aipo.tasks.cpu.products.traces import ProductsCurriculum
from aipo.tasks.cpu.settings import CpuSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHORT_RESPONSE_TOKENS = 128


def _start(curriculum: Callable[[int, Wording], Curriculum]) -> Start:
    """Return how the tiny policy of a curriculum, which takes the consultations of a rollout, is made."""

    def make(request: StartRequest) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        from aipo.tasks.cpu.warmstart import make_policy  # it imports torch

        consultations = request.settings.consult.max_consultations
        return make_policy(curriculum(consultations, request.wording), request)

    return Start(settings=CpuSettings, make=make)


CPU_TASKS = (
    TaskSpec(
        name=SHORT.name,
        title="Leg counting (Reasoning-Gym)",
        make=lambda settings, sandbox: LegCountingTask(SHORT),
        kind="cpu task",
        source="drawn by reasoning-gym",
        max_response_tokens=SHORT_RESPONSE_TOKENS,
        oracle=LegCountingOracle,
        agents=PAPER_AGENTS,
        start=_start(lambda consultations, wording: LegCountingCurriculum(consultations, wording, SHORT)),
    ),
    TaskSpec(
        name=LONG.name,
        title="Leg counting, long (Reasoning-Gym)",
        make=lambda settings, sandbox: LegCountingTask(LONG),
        kind="cpu task",
        source="drawn by reasoning-gym",
        max_response_tokens=SHORT_RESPONSE_TOKENS,
        oracle=LegCountingOracle,
        agents=PAPER_AGENTS,
        start=_start(lambda consultations, wording: LegCountingCurriculum(consultations, wording, LONG)),
    ),
    TaskSpec(
        name=ProductsTask.name,
        title="Two-digit products",
        make=lambda settings, sandbox: ProductsTask(),
        kind="cpu task",
        source="drawn by this package",
        max_response_tokens=SHORT_RESPONSE_TOKENS,
        oracle=ProductsOracle,
        agents=PAPER_AGENTS,
        start=_start(ProductsCurriculum),
    ),
)
