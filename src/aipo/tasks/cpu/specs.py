"""The entries of the CPU tasks: each has a task, an oracle, and a supervised start from a curriculum."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from aipo.config.settings import SandboxSettings, TaskSettings
from aipo.core.types import PAPER_AGENTS
from aipo.tasks.base import Ask, Oracle, Problem, Start, StartRequest, Task, TaskSpec, Wording
from aipo.tasks.cpu.curriculum import Curriculum
from aipo.tasks.cpu.products.oracle import ProductsOracle, asking
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


def _leg_counting(name: str, title: str) -> TaskSpec:
    """Return a variant; what draws its problems is imported on use, for reasoning-gym takes seconds."""

    def task(settings: TaskSettings, sandbox: SandboxSettings) -> Task:
        from aipo.tasks.cpu.leg_counting.task import VARIANTS, LegCountingTask

        return LegCountingTask(VARIANTS[name])

    def oracle(wording: Wording) -> Oracle:
        from aipo.tasks.cpu.leg_counting.oracle import LegCountingOracle

        return LegCountingOracle(wording)

    def curriculum(consultations: int, wording: Wording) -> Curriculum:
        from aipo.tasks.cpu.leg_counting.task import VARIANTS
        from aipo.tasks.cpu.leg_counting.traces import LegCountingCurriculum

        return LegCountingCurriculum(consultations, wording, VARIANTS[name])

    def asked(problem: Problem, agent: str) -> Sequence[str | Ask]:
        from aipo.tasks.cpu.leg_counting.oracle import asking as asking_of_legs

        return asking_of_legs(problem, agent)

    return TaskSpec(
        name=name,
        title=title,
        make=task,
        kind="cpu task",
        source="drawn by reasoning-gym",
        max_response_tokens=SHORT_RESPONSE_TOKENS,
        oracle=oracle,
        agents=PAPER_AGENTS,
        asking=asked,
        start=_start(curriculum),
    )


CPU_TASKS = (
    _leg_counting("leg_counting", "Leg counting (Reasoning-Gym)"),
    _leg_counting("leg_counting_long", "Leg counting, long (Reasoning-Gym)"),
    TaskSpec(
        name=ProductsTask.name,
        title="Two-digit products",
        make=lambda settings, sandbox: ProductsTask(),
        kind="cpu task",
        source="drawn by this package",
        max_response_tokens=SHORT_RESPONSE_TOKENS,
        oracle=ProductsOracle,
        agents=PAPER_AGENTS,
        asking=asking,
        start=_start(ProductsCurriculum),
    ),
)
