"""A small environment of verifiers, imported by that library's own Python: sums, two reward functions."""

import verifiers as vf
from datasets import Dataset


def right(completion, answer, **kwargs):  # type: ignore[no-untyped-def]
    said = completion[-1]["content"]
    if "boom" in said:
        raise ValueError("no such sum")
    while "hang" in said:
        pass
    if "leave" in said:
        import os

        os._exit(3)
    print("a reward function that prints is no reply")
    return 1.0 if said.rpartition(" ")[2] == answer else 0.0


async def short(completion, info, state, **kwargs):  # type: ignore[no-untyped-def]
    assert state["task"]["info"] == info and len(state["trajectory"]) == 1
    return 1.0 if len(completion[-1]["content"]) <= info["most"] else 0.0


def rows(numbers):  # type: ignore[no-untyped-def]
    most = {"most": 20}
    return Dataset.from_list(
        [{"question": f"What is {n} + {n}?", "answer": str(2 * n), "info": most} for n in numbers]
    )


def load_environment(kind="single", first=1, evaluated=True):  # type: ignore[no-untyped-def]
    rubric = vf.Rubric(funcs=[right, short], weights=[1.0, 0.5])
    train = rows(range(first, first + 250))
    if kind == "group":
        rubric = vf.RubricGroup([vf.Rubric(funcs=[right]), vf.Rubric(funcs=[short], weights=[0.5])])
    if kind == "tools":

        def double(n: int) -> int:
            """Double a number."""
            return 2 * n

        return vf.ToolEnv(tools=[double], dataset=train, rubric=rubric)
    if kind == "together":

        def best(completions, **kwargs):  # type: ignore[no-untyped-def]
            return [0.0 for _ in completions]

        rubric = vf.Rubric(funcs=[best])
    return vf.SingleTurnEnv(
        dataset=train,
        eval_dataset=rows(range(first, first + 5)) if evaluated else None,
        system_prompt="Be short.",
        rubric=rubric,
    )
