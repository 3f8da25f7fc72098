"""Prompts are measured in tokens before a run begins, and what does not fit is refused or left out."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from aipo.assembly.checking import check_problems
from aipo.assembly.fitting import Fitting, too_long
from aipo.assembly.parts import build_prompts
from aipo.config.loader import load_settings
from aipo.core.types import Condition
from aipo.rollout.group import Prompts
from aipo.tasks.base import Grade, Problem, Split, TaskError
from aipo.tasks.jsonl import JsonlSource, JsonlTask
from support.tokenizers import byte_level_bpe

LIMIT = 900
TIBETAN = "\u0f40\u0f0b" * 60
"""Few characters, and three tokens of a byte-level tokenizer for each."""


def prompts(limit: int = LIMIT) -> Prompts:
    settings = load_settings(None, [f"rollout.max_prompt_tokens={limit}", "task.name=gsm8k"])
    return build_prompts(settings, byte_level_bpe(), {})


def file_of(path: Path, texts: Sequence[str]) -> Path:
    rows = [{"problem": text, "answer": str(n)} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def task(tmp_path: Path) -> JsonlTask:
    long_in_characters = [f"{n}: " + "the answer " * 8 for n in range(60)]
    path = file_of(tmp_path / "t.jsonl", [*long_in_characters, f"x {TIBETAN}", f"y {TIBETAN}"])
    return JsonlTask({Split.TEST: JsonlSource(path=path)}, "exact")


@pytest.fixture
def limit(task: JsonlTask) -> int:
    """What all prompts but the last two fit."""
    lengths = sorted(prompts(10**6).lengths(task.problems(Split.TEST), Condition.CONSULTING))
    assert lengths[-3] < lengths[-2]
    return lengths[-3]


class Other:
    """A task whose problems come from no file."""

    name = "other"

    def problems(self, split: Split) -> Sequence[Problem]:
        return [Problem(id="o/1", text=TIBETAN * 9, gold="1")]

    async def grade(self, problem: Problem, response: str) -> Grade:
        raise NotImplementedError

    def without_answer(self, problem: Problem, text: str) -> str | None:
        return None


def test_a_prompt_long_in_tokens_is_refused_with_file_line_and_count(task: JsonlTask, limit: int) -> None:
    with pytest.raises(TaskError) as raised:
        Fitting(task=task, prompts=prompts(limit)).problems(Split.TEST)
    message = str(raised.value)
    assert "t.jsonl:61: problem t/60" in message and "2 prompts are too long" in message
    assert f"rollout.max_prompt_tokens = {limit}" in message and "task.on_bad_row = 'drop'" in message


def test_or_it_is_left_out_and_said(task: JsonlTask, limit: int) -> None:
    fitting = Fitting(task=task, prompts=prompts(limit), on_bad_row="drop")
    assert [p.id for p in fitting.problems(Split.TEST)] == [f"t/{n}" for n in range(60)]
    (line,) = fitting.lines()
    assert "2 problems to test left out" in line and "t.jsonl:61, " in line
    with pytest.raises(TaskError, match="no prompt to test fits: problem o/1: "):
        Fitting(task=Other(), prompts=prompts(), on_bad_row="drop").problems(Split.TEST)


def test_what_fits_is_left_as_it_is(task: JsonlTask, limit: int) -> None:
    fitting = Fitting(task=task, prompts=prompts(10**6))
    assert fitting.problems(Split.TEST) is task.problems(Split.TEST)
    assert list(fitting.lines()) == []


@pytest.mark.parametrize("condition", list(Condition))
def test_quick_lengths_are_those_of_the_prompts_near_the_limit(
    task: JsonlTask, limit: int, condition: Condition
) -> None:
    made, problems = prompts(10**6), task.problems(Split.TEST)
    exact = [len(made.ids(problem, condition)) for problem in problems]
    assert prompts(limit).lengths(problems, condition)[-2:] == exact[-2:]
    assert all(abs(a - b) <= 64 for a, b in zip(made.lengths(problems, condition), exact, strict=True))


def test_a_template_that_says_the_problem_twice_is_measured_as_it_is(task: JsonlTask) -> None:
    from dataclasses import replace

    tokenizer = byte_level_bpe()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} again {{ m.content }}{% endfor %}"
    twice, problems = replace(prompts(10**6), tokenizer=tokenizer), task.problems(Split.TEST)
    exact = [len(twice.ids(problem, Condition.SOLO)) for problem in problems]
    assert twice.lengths(problems, Condition.SOLO) == exact
    assert too_long(replace(twice, max_prompt_tokens=10**6), problems) == []


def test_a_conversation_is_measured_whole() -> None:
    turns = (("user", "1+1?"), ("assistant", TIBETAN), ("user", "And?"))
    problems = [Problem(id="c", text="And?", gold="1", turns=turns)]
    (long,) = too_long(prompts(300), problems)
    assert long.tokens == len(prompts(10**6).ids(problems[0], Condition.CONSULTING))


def test_what_is_said_of_a_file_beforehand_is_what_a_run_would_find(tmp_path: Path) -> None:
    texts = ["1+1?", "2+2?", " 1+1? ", f"x {TIBETAN}"]
    path = file_of(tmp_path / "f.jsonl", texts)
    path.write_text(path.read_text() + '{"problem": "angle?", "answer": "9 +* ("}\nno json\n')
    byte_level_bpe().save_pretrained(tmp_path / "model")
    named = ["task.name=jsonl", f"task.train_file='{path}'", f"policy.model='{tmp_path / 'model'}'"]
    lengths = prompts(10**6).lengths([Problem(id="", text=t, gold="") for t in texts], Condition.CONSULTING)
    settings = load_settings(None, [*named, f"rollout.max_prompt_tokens={max(lengths[:3])}"])
    (checked,), overlaps = check_problems(settings)
    assert (checked.rows, len(checked.problems), checked.left_out, overlaps) == (6, 4, 3, 0)
    assert checked.repeated == [f"{path}:3: also at {path}:1, with gold '0' for '2'"]
    assert [line.partition(": ")[0] for line in checked.bad + checked.long] == [
        f"{path}:6",
        f"{path}:5",
        f"{path}:4",
    ]


def test_a_prompt_near_a_small_limit_is_measured_exactly_though_the_template_grows_into_it() -> None:
    tokenizer = byte_level_bpe()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}he{% endif %}"
    )
    texts = ["a t", *(f"{'b ' * words}{end}" for words in range(2, 30) for end in "t1"), "b " * 60 + "t"]
    problems = [Problem(id=str(n), text=text, gold="1") for n, text in enumerate(texts)]
    own, exact = (
        [len(tokenizer.encode(text + more, add_special_tokens=False)) for text in texts]
        for more in ("", "he")
    )
    added = [whole - part for whole, part in zip(exact, own, strict=True)]
    longer = next(n for n, more in enumerate(added) if exact[n] > 30 and more > added[0] == added[-1])
    limit = exact[longer] - 1
    own_settings = [f"rollout.max_prompt_tokens={limit}", "consult.solo_prompt=", "task.name=gsm8k"]
    settings = load_settings(None, ["agents.enabled=[]", *own_settings])
    found = build_prompts(settings, tokenizer, {}).lengths(problems, Condition.SOLO)
    assert [tokens > limit for tokens in found] == [tokens > limit for tokens in exact]
