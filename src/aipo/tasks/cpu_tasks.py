"""The CPU tasks: which Task, Oracle and Curriculum stand behind which name.

Owns the mapping. Must not know settings, agents or training.
Invariant: each of them has all three, so that it can be warm-started, consulted on and graded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from aipo.tasks.base import Oracle, Task
from aipo.tasks.curriculum import Curriculum
from aipo.tasks.leg_counting.oracle import LegCountingOracle
from aipo.tasks.leg_counting.task import LONG, SHORT, LegCountingTask
from aipo.tasks.leg_counting.traces import LegCountingCurriculum
from aipo.tasks.products.oracle import ProductsOracle
from aipo.tasks.products.task import ProductsTask
from aipo.tasks.products.traces import ProductsCurriculum


@dataclass(frozen=True, slots=True)
class CpuTask:
    """Makers of the parts of one CPU task."""

    task: Callable[[], Task]
    oracle: Callable[[], Oracle]
    curriculum: Callable[[int], Curriculum]
    """Takes the consultations that a rollout may make."""


def _long_curriculum(max_consultations: int) -> Curriculum:
    return LegCountingCurriculum(max_consultations, LONG)


CPU_TASKS: Mapping[str, CpuTask] = MappingProxyType(
    {
        SHORT.name: CpuTask(LegCountingTask, LegCountingOracle, LegCountingCurriculum),
        LONG.name: CpuTask(lambda: LegCountingTask(LONG), LegCountingOracle, _long_curriculum),
        ProductsTask.name: CpuTask(ProductsTask, ProductsOracle, ProductsCurriculum),
    }
)
