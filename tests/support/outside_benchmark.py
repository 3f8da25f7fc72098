"""A benchmark from outside the package: AMC 2023, whose golds are written `27.0`."""

from aipo.tasks.base import Split
from aipo.tasks.benchmarks.benchmark import Benchmark, Kind, Part, Use
from aipo.tasks.benchmarks.schemas import integer_row

AMC23 = Benchmark(
    name="amc23",
    title="AMC 2023",
    kind=Kind.INTEGER,
    use=Use.EVALUATION,
    hub="math-ai/amc23",
    configuration="default",
    # `rows` of the part would say which numbers of rows are confirmed
    parts={Split.TEST: Part(hub_split="test", stem="amc23")},
    licence="not stated",
    columns=("question", "answer"),
    convert=integer_row("question", "answer", "id"),
    prompt=r"Reason step by step, and put the final answer, an integer, inside \boxed{}.",
    samples=16,
    notes=("Its golds are written as decimals: 27.0.",),
)
