"""A task's problems as Parquet for verl.

A row holds all that the agent loop needs to make the problem again; the messages in `prompt` are those that
the loop's rollouts begin with.
"""

from pathlib import Path
from typing import Any

from aipo.assembly.agents import build_protocol
from aipo.assembly.parts import build_prompts, build_task
from aipo.config.settings import Settings
from aipo.consult.prompts import system_prompt
from aipo.consult.protocol import neutralise
from aipo.core.types import Condition
from aipo.evaluation.sampling import first_of_each_stratum
from aipo.integrations.verl.config import TRAIN_FILE, VALIDATION_FILE
from aipo.integrations.verl.problems import table_of_problem
from aipo.rollout.group import Prompts, solution_of
from aipo.tasks.base import Problem, Split
from aipo.training.problems import ProblemBatches

LOOPS = {Condition.CONSULTING: "aipo_agents", Condition.SOLO: "aipo_solo"}
"""Agent loops of validation rows."""


def export(settings: Settings, output: Path, with_agents: bool) -> str:
    """Write both files into a folder; return what was written, in a line. Raises `ValueError`s.

    The training rows stand in the order of the run: each `train.prompts_per_step` of them are the problems of
    one step of `aipo train`, strata mixed as there, for as many steps as there are, and as many more rounds
    as dynamic sampling may take.
    """
    task = build_task(settings.task, settings.sandbox)
    writer = _Rows(settings)
    problems = task.problems(Split.TRAIN)
    for problem in problems if settings.rollout.experts_per_prompt else ():
        solution_of(problem)
    batches = ProblemBatches(problems, settings)
    numbers = range(1, settings.train.steps * (1 + settings.train.dynamic_sampling_rounds) + 1)
    drawn = [problem for number in numbers for problem in batches.batch(number)]
    train = [writer.row(p, Condition.CONSULTING, "aipo", i) for i, p in enumerate(drawn)]
    held_out = first_of_each_stratum(task.problems(Split.VALIDATION), settings.evaluate.problems)
    conditions = [Condition.SOLO, *([Condition.CONSULTING] if with_agents else [])]
    validation = [writer.row(p, c, LOOPS[c], i) for c in conditions for i, p in enumerate(held_out)]
    output.mkdir(parents=True, exist_ok=True)
    _write(train, output / TRAIN_FILE)
    _write(validation, output / VALIDATION_FILE)
    measured = "" if writer.measured else "; prompts were not measured: set policy.model to measure them"
    return (
        f"{output}: {len(train)} training rows of {len(problems)} problems, {len(validation)} validation "
        f"rows{measured}"
    )


class _Rows:
    """Makes rows; measures prompts where there is a tokenizer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._protocol = build_protocol(settings)
        self._prompts: Prompts | None = None
        self._forbidden: tuple[str, ...] = self._protocol.control_strings
        self._made: dict[tuple[int, str], dict[str, Any]] = {}
        """Rows by their problem's `id` and their loop: a long run draws a problem many times."""
        if settings.policy.model:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(settings.policy.model)
            self._prompts = build_prompts(settings, tokenizer, {})
            self._forbidden = self._prompts.consult.codec.forbidden

    @property
    def measured(self) -> bool:
        """Whether prompts are measured."""
        return self._prompts is not None

    def row(self, problem: Problem, condition: Condition, loop: str, index: int) -> dict[str, Any]:
        """Return one row. Raises `ValueError` for a prompt that is too long in either condition."""
        if (id(problem), loop) not in self._made:
            self._made[id(problem), loop] = self._row(problem, condition, loop)
        row = self._made[id(problem), loop]
        return row | {"extra_info": {"index": index, **row["extra_info"]}}

    def _row(self, problem: Problem, condition: Condition, loop: str) -> dict[str, Any]:
        if self._prompts is not None:
            for each in {condition, Condition.SOLO}:
                self._prompts.ids(problem, each)
        system = self._system(condition)
        messages = [{"role": "system", "content": system}] if system else []
        turns = problem.turns or (("user", problem.text),)
        messages += [{"role": role, "content": neutralise(text, self._forbidden)} for role, text in turns]
        return {
            "data_source": f"{self._settings.task.name}/{problem.stratum}/{loop}",
            "prompt": messages,
            "ability": self._settings.task.name,
            "reward_model": {"style": "rule", "ground_truth": problem.gold},
            "extra_info": {"problem": table_of_problem(problem, bool(self._settings.task.reward))},
            "agent_name": loop,
        }

    def _system(self, condition: Condition) -> str:
        consult = self._settings.consult
        override = consult.solo_prompt if condition is Condition.SOLO else consult.consulting_prompt
        return system_prompt(condition, self._protocol, override)


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
