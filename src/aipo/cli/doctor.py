"""`aipo doctor`: can this machine run this recipe? A table, and for each failing line the fix.

A line fails only where the settings need what is missing; the exit code is 1 then, else 0. Nothing is
trained, and nothing is written to the run's folder.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from aipo.assembly.agents import build_agents, oracle_of
from aipo.assembly.canary import Tried, problems_to_ask_about, try_all
from aipo.assembly.during import schedule
from aipo.assembly.engines import ENGINES
from aipo.assembly.formats import build_format
from aipo.assembly.judges import judges_of, try_judges
from aipo.assembly.memory import memory_line
from aipo.assembly.parts import Parts, assemble, build_task, refuse_unknown_names
from aipo.assembly.questions import ROWS, first_split, question_of, rehearsed
from aipo.assembly.rehearsal import rehearsed_consultation
from aipo.assembly.selftest import SELF_TEST, self_test
from aipo.cli.console import console, plain_errors
from aipo.cli.machine import Finding, Health, disk, graphics, isolation, memory, versions
from aipo.cli.screen import Terminal
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.consult.formats import Format
from aipo.consult.prompts import check_template, dated, takes_system
from aipo.core.types import ConsultOutcome, Verdict
from aipo.engines.base import EngineError
from aipo.tasks.base import Problem, Task
from aipo.tasks.jsonl import JsonlTask
from aipo.tasks.registry import task_spec
from aipo.training.compiling import check_compile
from aipo.training.device import the_device
from aipo.training.optimizers import check_optimizer
from aipo.training.snapshot import room_for_checkpoints

EXIT_FAILED = 1
MANY_TOKENS = 4
"""A tag of more tokens is written by a policy seldom without being taught, and banned incompletely."""
Doing = Callable[[str], AbstractContextManager[None]]
_STYLES = {Health.OK: "green", Health.LOOK: "yellow", Health.FAILED: "bold red"}


def doctor(recipe: Path | None, overrides: Sequence[str]) -> None:
    """Look, print, and exit with 1 when something that the settings need is missing."""
    with plain_errors():
        settings = load_settings(recipe, overrides)
        refuse_unknown_names(settings)
        findings = [
            *versions(),
            graphics(the_device(settings.run.device)),
            disk(settings.run.output),
            memory(),
            *isolation(settings.sandbox),
        ]
        if recipe is not None:
            findings += of_recipe(settings)
    console.print(table(findings))
    failed = [finding for finding in findings if finding.health is Health.FAILED]
    for finding in failed:
        console.print(Text(f"{finding.what}: {finding.fix or finding.found}", style="bold red"))
    if failed:
        raise typer.Exit(EXIT_FAILED)


def table(findings: Sequence[Finding]) -> Table:
    """Return one row for each finding."""
    result = Table("what", "", "found")
    for finding in findings:
        shown = finding.found.splitlines()[0] if finding.found else ""
        result.add_row(finding.what, Text(finding.health, style=_STYLES[finding.health]), Text(shown))
    return result


def of_recipe(settings: Settings) -> list[Finding]:
    """Return what there is to say of a recipe: each part by itself, then all together."""
    doing = Terminal().doing
    with doing("reading problems, grading one"):
        findings = _looked("task", lambda: _graded(settings))
    findings += _looked("policy", lambda: _tokenizer(settings))
    if settings.agents.enabled:
        with doing("asking each agent"):
            findings += _looked("agents", lambda: _agents(settings))
    else:
        findings.append(Finding(what="agents", found="none: plain RLVR"))
    if judges_of(settings.task):
        with doing("asking the judge"):
            findings += _looked("judge", lambda: _judges(settings))
    findings += _looked("optimiser", lambda: _optimizer(settings))
    findings += _looked("memory of the run", lambda: _memory(settings))
    if findings[-1].health is Health.FAILED:
        return findings  # nothing is loaded that cannot fit
    return [*findings, *_looked("engine", lambda: _together(settings, doing))]


def _looked(what: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """Return what a look finds; what cannot be looked at is a failure with its reason."""
    try:
        return look()
    except (ValueError, OSError, EngineError) as error:
        return [Finding(what=what, health=Health.FAILED, found=str(error))]


# problems and grading


def _graded(settings: Settings) -> list[Finding]:
    split = first_split(settings.task)
    task = build_task(settings.task, settings.sandbox)
    problems = task.problems(split)
    first = problems[0]
    right = _stating_gold(task, first)
    other = next((p for p in problems if p.gold != first.gold), None)
    wrong = _stating_gold(task, other) if other else "no idea"
    if not right:
        return [Finding(what="problems", found=f"{len(problems)} to {split}, without reference answers")]
    verdicts = asyncio.run(_verdicts(task, first, right, wrong))
    expected = (Verdict.CORRECT, Verdict.INCORRECT)
    fix = f"look at {first.id}, its gold {first.gold!r} and task.match, task.answer_field, task.answer_after"
    found = f"gold {verdicts[0]}, another answer {verdicts[1]}"
    return [
        Finding(what="problems", found=f"{len(problems)} to {split}"),
        Finding(
            what="grading", health=Health.OK if verdicts == expected else Health.FAILED, found=found, fix=fix
        ),
    ]


def _stating_gold(task: Task, problem: Problem) -> str:
    """Return a response that states the gold; '' where only tests are known."""
    if say := getattr(task, "gold_response", None):
        return say(problem) or ""
    boxed = f"\\boxed{{{problem.gold}}}"
    return boxed if isinstance(task, JsonlTask) else problem.solution or boxed


async def _verdicts(task: Task, problem: Problem, right: str, wrong: str) -> tuple[Verdict, Verdict]:
    return (await task.grade(problem, right)).verdict, (await task.grade(problem, wrong)).verdict


# the policy's tokenizer


def _tokenizer(settings: Settings) -> list[Finding]:
    model = settings.policy.model
    if not model:
        raise ValueError(
            "policy.model is empty; name a model folder or hub id, or first run `aipo warmstart`"
        )
    tokenizer = AutoTokenizer.from_pretrained(model)
    template = Health.OK if tokenizer.chat_template else Health.FAILED
    if tokenizer.chat_template:
        check_template(tokenizer)  # refuses one that loses the problem or opens no turn
    findings = [
        Finding(
            what="chat template",
            health=template,
            found=_template_said(settings, tokenizer) if tokenizer.chat_template else "missing",
            fix=f"policy.model = {model!r}: use an instruct model, or set tokenizer.chat_template and save",
        )
    ]
    if settings.agents.enabled:
        protocol, _ = build_format(settings, tokenizer)  # refuses a tag that does not survive, and names it
        findings.append(_tags(protocol, tokenizer))
    return findings


def _template_said(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> str:
    system = "present" if takes_system(tokenizer) else "no system role: its text begins the user's message"
    return f"{system}; writes the date, policy.date = {settings.policy.date}" if dated(tokenizer) else system


def _tags(protocol: Format, tokenizer: PreTrainedTokenizerBase) -> Finding:
    lengths = {t: len(tokenizer.encode(t, add_special_tokens=False)) for t in protocol.control_strings}
    found = ", ".join(f"{tag} {number}" for tag, number in lengths.items())
    health = Health.LOOK if max(lengths.values(), default=0) > MANY_TOKENS else Health.OK
    return Finding(
        what="tokens of each tag",
        health=health,
        found=found or "tool calls without tags, as the chat template writes them",
        fix="add the tags as special tokens of the tokenizer",
    )


# agents


def _agents(settings: Settings) -> list[Finding]:
    agent_set = build_agents(settings, oracle_of(settings), use_cache=False)
    problems, _ = problems_to_ask_about(settings)
    return [_agent(one) for one in asyncio.run(try_all(settings, agent_set.agents, 1, problems))]


def _agent(tried: Tried) -> Finding:
    fix = "start its server or correct agents.*; `aipo agents check RECIPE` says more"
    health = Health.FAILED if tried.failures else Health.LOOK if tried.remark else Health.OK
    said = "; ".join(tried.reasons) or tried.remark or f"answers in {max(tried.latencies_s):.2f} s"
    return Finding(
        what=f"agent {tried.agent}", health=health, found=said, fix=f"{'; '.join(tried.reasons)}; {fix}"
    )


def _judges(settings: Settings) -> list[Finding]:
    fix = "start its server or correct task.judge.*; `aipo agents check RECIPE` says more"
    return [
        Finding(
            what=one.name,
            health=Health.FAILED if one.reasons else Health.LOOK if one.warning else Health.OK,
            found=one.said,
            fix=f"{one.said}; {fix}",
        )
        for one in try_judges(settings)
    ]


# all together


def _optimizer(settings: Settings) -> list[Finding]:
    check_optimizer(settings)
    check_compile(settings)
    compiled = "; layers are compiled" if settings.train.compile else ""
    return [Finding(what="optimiser", found=f"{settings.train.optimizer}{compiled}")]


def _memory(settings: Settings) -> list[Finding]:
    line = memory_line(settings, in_process=ENGINES[settings.engine.name].in_process)
    return [Finding(what="memory of the run", found=line.removeprefix("memory, "))] if line else []


def _together(settings: Settings, doing: Doing) -> list[Finding]:
    with doing(f"loading {settings.policy.model}"):
        parts = assemble(settings, use_cache=False)
    with closing(parts):
        size = sum(p.numel() for p in parts.model.parameters())
        dtype, more = parts.policy_engine.dtype, parts.policy_engine.said
        findings = [
            Finding(what="policy", found=f"{type(parts.model).__name__}, {size / 1e6:,.1f} M parameters"),
            Finding(what="engine", found=", ".join(filter(None, (settings.engine.name, dtype, more)))),
        ]
        findings += _said("checkpoints", lambda: room_for_checkpoints(parts.model, settings))
        findings += _said("evaluation", lambda: schedule(settings, parts).line)
        split = first_split(settings.task)
        problems = parts.problems(split)
        findings += [
            Finding(what="left out", health=Health.LOOK, found=each) for each in parts.fitting.lines()
        ]
        with doing(SELF_TEST):
            findings += _looked("sampler agrees", lambda: _agrees(settings, parts, problems))
        if settings.agents.enabled:
            findings += _looked("consultation", lambda: _consultation(settings, parts, problems))
    return findings


def _said(what: str, say: Callable[[], str]) -> list[Finding]:
    """Return what a run says of it at its start."""

    def look() -> list[Finding]:
        line = say()
        return [Finding(what=what, found=line.removeprefix(f"{what}: "))] if line else []

    return _looked(what, look)


def _agrees(settings: Settings, parts: Parts, problems: Sequence[Problem]) -> list[Finding]:
    self_test(parts, problems, settings.rollout.temperature)
    return [Finding(what="sampler agrees", found="its log-probabilities are the training forward's")]


def _consultation(settings: Settings, parts: Parts, problems: Sequence[Problem]) -> list[Finding]:
    """Rehearse with the agent of the paper's three that has words for every problem: the last one."""
    spec = settings.agents.specs()[-1]
    for problem in problems[:ROWS]:
        question = rehearsed(question_of(spec, task_spec(settings.task.name), problem), spec)
        settled = asyncio.run(rehearsed_consultation(parts, spec, question))
        if settled.outcome is not ConsultOutcome.EMPTY:
            break
    silent_health = Health.FAILED if question.by_the_task else Health.LOOK
    health = {
        ConsultOutcome.ANSWERED: Health.OK,
        ConsultOutcome.EMPTY: Health.OK if spec.may_be_silent else silent_health,
    }.get(settled.outcome, Health.FAILED)
    said = repr(settled.reply[:60]) if settled.reply else settled.detail
    found = f"{settled.agent}: asked {settled.request[:60]!r}, {settled.outcome}: {said}"
    return [Finding(what="consultation", health=health, found=found)]
