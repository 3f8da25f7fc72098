"""The reasoning-gym set: which generators with which parameters, which are left out and why, and scoring.

No scorer here executes what a policy wrote, or evaluates it as an expression.

The paper names "27 tasks x 10". The list is that of the first author's earlier public code [prototype], which
drew train and test from one seed, so that the test items were training items; ours are apart
(`gym_freeze`). Three of its configurations ask for the state of a 30 x 30 Game of Life that is seeded with 10
cells, of which the library's default asks for any size of board: in 30 of 30 items the answer was the empty
board. Here the board is seeded with 90 cells, 10 %, as the parameter beside it says [ours].
https://github.com/open-thought/reasoning-gym
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from aipo.core.types import Verdict
from aipo.grading import Grade
from aipo.grading.extract import after_thinking, extract_answer
from aipo.grading.gym import MIN_SCORE, GymScorer
from aipo.tasks.base import TaskError

TAG = "Reason step by step, and write the final answer, and nothing else, between <answer> and </answer>."
"""What is asked behind a question; `answer_of` reads it."""
MAX_ANSWER_CHARS = 20_000

EXECUTES_THE_ANSWER = frozenset(
    {
        "string_insertion",
        "spiral_matrix",
        "binary_matrix",
        "n_queens",
        "simple_integration",
        "intermediate_integration",
        "polynomial_multiplication",
        "puzzle24",
        "countdown",
        "codeio",
    }
)
"""Generators whose scorer evaluates the policy's text (reasoning-gym 0.1.25); they are refused."""

ACCEPTS_ANYTHING = frozenset({"game_of_life_halting"})
"""Generators whose scorer takes any text for right; refused."""

WITHOUT_ORACLE = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
"""Generators without an answer of their own, or whose own answer scores 0; refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GymTask:
    """One generator with its parameters."""

    name: str
    generator: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    train_parameters: Mapping[str, Any] = field(default_factory=dict)
    """What differs for training items."""


_BOARD = {"grid_size_x": 30, "grid_size_y": 30, "filled_cells": 90}

_TRAINING = {"acre": {"train": 1}}

PAPER_TASKS: tuple[GymTask, ...] = tuple(
    GymTask(name=name, generator=generator, parameters=parameters, train_parameters=_TRAINING.get(name, {}))
    for name, generator, parameters in (
        ("ab_10", "ab", {"length": 10}),
        ("ab_15", "ab", {"length": 15}),
        ("acre", "acre", {"train": 0}),
        ("advanced_geometry", "advanced_geometry", {"min_coord": -100, "max_coord": 100}),
        ("aiw", "aiw", {"max_entities": 10}),
        ("cryptarithm", "cryptarithm", {"min_words": 5, "max_words": 20}),
        ("dice", "dice", {"num_dice": 5, "max_dice_size": 30}),
        ("futoshiki", "futoshiki", {}),
        *((f"game_of_life_{n}", "game_of_life", _BOARD | {"simulation_steps": n}) for n in (3, 4, 5)),
        ("game_of_life_halting", "game_of_life_halting", {}),
        ("jugs", "jugs", {"difficulty": 20}),
        ("knight_swap", "knight_swap", {}),
        *(
            (
                f"knights_knaves_{n}",
                "knights_knaves",
                {"n_people": n, "depth_constraint": n, "width_constraint": n},
            )
            for n in (3, 5)
        ),
        ("mahjong_puzzle", "mahjong_puzzle", {"min_num_rounds": 30}),
        ("needle_haystack", "needle_haystack", {"min_num_statements": 50}),
        *((f"quantum_lock_{n}", "quantum_lock", {"difficulty": n}) for n in (10, 20)),
        ("rush_hour", "rush_hour", {"min_moves": 10}),
        ("self_reference", "self_reference", {"difficulty": 10}),
        ("sudoku", "sudoku", {}),
        *(
            (f"zebra_puzzles_{n}", "zebra_puzzles", {"num_people": n, "num_characteristics": n})
            for n in (4, 5, 6, 7)
        ),
    )
)
"""The 27 configurations, with those that cannot be scored."""


def why_excluded(task: GymTask) -> str:
    """Return why a generator is not used, or ''.

    >>> [f"{task.name}: {why_excluded(task)}" for task in PAPER_TASKS if why_excluded(task)]
    ['game_of_life_halting: its scorer accepts any answer', 'rush_hour: it has no answer of its own']
    """
    if task.generator in EXECUTES_THE_ANSWER:
        return "its scorer executes the answer"
    if task.generator in ACCEPTS_ANYTHING:
        return "its scorer accepts any answer"
    if task.generator in WITHOUT_ORACLE:
        return "it has no answer of its own"
    return ""


TASKS: Mapping[str, GymTask] = MappingProxyType({t.name: t for t in PAPER_TASKS if not why_excluded(t)})
"""The 25 configurations that are used, by name."""


def answer_of(response: str) -> str | None:
    r"""Return the last `<answer>` block after the thinking, or else the last box; stripped; None without one.

    Boards are longer than what fits a box of mathematics, hence the tag. An answer of more than
    `MAX_ANSWER_CHARS` characters is none.

    >>> answer_of("<answer> 4 </answer>"), answer_of(r"so \boxed{A \to B}"), answer_of("4")
    ('4', 'A \\to B', None)
    """
    _before, tag, rest = after_thinking(response).rpartition("<answer>")
    if not tag:
        return extract_answer(response)
    answer = rest.partition("</answer>")[0].strip()
    return answer if answer and len(answer) <= MAX_ANSWER_CHARS else None


async def grade_gym(response: str, entry: Mapping[str, Any], scorer: GymScorer) -> Grade:
    """Grade a response by the generator's own scorer, binarised at `MIN_SCORE`.

    `entry` has `task` (a name of `TASKS`), `question`, `answer` and `metadata`. An answer at which the scorer
    raises is INCORRECT, with the error's name; where it raises at the gold too, grading failed: UNGRADED.
    """
    answer = answer_of(response)
    if answer is None:
        return Grade(Verdict.INCORRECT, "no_answer")
    if str(entry["task"]).startswith("game_of_life") and not _is_board(answer):
        return Grade(Verdict.INCORRECT, "no_board")  # the scorer would raise, at the policy's wish
    value = await scorer.score(known(str(entry["task"])).generator, answer, entry)
    if isinstance(value, Grade):
        return value
    right = value >= MIN_SCORE
    return Grade(Verdict.CORRECT, "score") if right else Grade(Verdict.INCORRECT, f"score: {value:.2f}")


def _is_board(answer: str) -> bool:
    try:
        board = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(board, list) and all(isinstance(row, list) for row in board)


def score(answer: str, entry: Mapping[str, Any]) -> float:
    """Return the generator's own score of an answer, in [0, 1]. Raises what the scorer raises."""
    return float(_scorer(known(str(entry["task"])).generator)(answer, entry))


def known(name: str) -> GymTask:
    """Return a configuration by name. Raises `TaskError` for one that is not used, with the reason."""
    if name in TASKS:
        return TASKS[name]
    reason = next((why_excluded(task) for task in PAPER_TASKS if task.name == name), "it is unknown")
    raise TaskError(f"reasoning-gym task {name!r} is not used: {reason}; use one of {', '.join(TASKS)}")


@cache
def _scorer(generator: str) -> Callable[[str, Mapping[str, Any]], float]:
    import reasoning_gym

    scorer: Callable[[str, Mapping[str, Any]], float] = reasoning_gym.get_score_answer_fn(generator)
    return scorer
