"""The entries of the CPU tasks: each has a task, an oracle and a curriculum for its supervised start."""

from aipo.core.types import PAPER_AGENTS
from aipo.tasks.base import TaskSpec
from aipo.tasks.cpu.leg_counting.oracle import LegCountingOracle
from aipo.tasks.cpu.leg_counting.task import LONG, SHORT, LegCountingTask
from aipo.tasks.cpu.leg_counting.traces import LegCountingCurriculum
from aipo.tasks.cpu.products.oracle import ProductsOracle
from aipo.tasks.cpu.products.task import ProductsTask
from aipo.tasks.cpu.products.traces import ProductsCurriculum

SHORT_RESPONSE_TOKENS = 128

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
        curriculum=lambda consultations, wording: LegCountingCurriculum(consultations, wording, SHORT),
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
        curriculum=lambda consultations, wording: LegCountingCurriculum(consultations, wording, LONG),
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
        curriculum=ProductsCurriculum,
    ),
)
