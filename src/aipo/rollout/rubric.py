"""A model that judges by a rubric: what it is sent, and how its score is read.

What the policy wrote is hostile. It stands between two lines with a code that it cannot hold, the marks that
chat templates are made of are broken in it, and a score counts in the last line of the judge's reply alone.
A score that is absent, outside the scale or perhaps cut off is no reward, unless it was the response that the
judge came to nothing about: of a judge that scores an empty response to the same problem, the worst.
"""

import asyncio
import json
import re
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.resources import files
from weakref import WeakKeyDictionary

from aipo.agents.base import AgentError, AgentFailure, AgentQuery, AgentReply
from aipo.agents.prompting import HASH_DIGITS, AgentPrompt, packaged_prompt
from aipo.agents.replies import Reading, excerpt, unreadable
from aipo.agents.spec import AgentSpec
from aipo.config.judge import JudgeSettings
from aipo.config.settings import TaskSettings
from aipo.core.types import ConsultOutcome
from aipo.rollout.asking import ask
from aipo.rollout.rewarded import Judge, JudgeMaker, Judgement, MadeAgent, MakeAgent, RewardedRollout
from aipo.tasks.base import Problem

NAME = "judge"
_CODE_DIGITS = 16
_ANSWERED = (AgentFailure.UNREADABLE, AgentFailure.REFUSED)
"""Failures that a response can bring about: a reply without a score, a request that the server refuses."""
_SAID_CHARACTERS = 4_000
"""Of a judge's words that are recorded."""
_LINE_CHARACTERS = 200
_MARKS = re.compile(
    r"<(?=[|\uff5c]|/?(?:s|bos|eos|start_of_turn|end_of_turn|think)>|</?SYS>>)|\[(?=/?INST\])"
)
"""Where the control tokens of chat templates begin: servers read them in a message's text, too."""
_SCORE = re.compile(
    r"[\s>#*_`\-]{0,12}score[*_`]{0,3}\s{0,3}:[\s*_`]{0,6}"
    r"(?P<score>[-+]?\d{1,7}(?:\.\d{1,9})?)(?:\s{0,2}(?:/|out of)\s{0,2}(?P<of>\d{1,7}(?:\.\d{1,9})?))?"
    r"[\s*_`.]{0,6}",
    re.IGNORECASE,
)


class RubricError(ValueError):
    """The rubric cannot be used; the message names the field, the value and the fix."""


def make_judge(task: TaskSettings, make_agent: MakeAgent) -> Judge:
    """Return the judge of `[task.judge]`. Raises `RubricError`, and what making its agent raises."""
    own = task.judge
    worst, best = own.scale

    def reader(text: str) -> Reading:
        score_in(text, worst, best)  # what holds no score is no reply, and is not kept
        return Reading(text)

    spec = AgentSpec(
        name=NAME,
        tag=NAME,
        offer="- $open a response $close judges it.",
        prompt=_prompt(rubric_of(own), worst, best),
        reader=reader,
        canary="",
        rehearsal="",
        colour=("#555555", "#aaaaaa"),
    )
    return RubricJudge(made=make_agent(own, spec), settings=own)


RUBRIC_JUDGE = JudgeMaker(make_judge)


def rubric_of(own: JudgeSettings) -> str:
    """Return the rubric's text. Raises `RubricError` for a file that cannot be read or holds nothing."""
    if own.rubric_file is None:
        packaged = files("aipo.agents").joinpath("prompts", "rubric.txt").read_text(encoding="utf-8")
        return own.rubric.strip() or packaged.strip()
    try:
        text = own.rubric_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RubricError(
            f"task.judge.rubric_file = {str(own.rubric_file)!r} cannot be read ({error}); name a text "
            "file in UTF-8"
        ) from None
    if not text:
        raise RubricError(
            f"task.judge.rubric_file = {str(own.rubric_file)!r} is empty; write the rubric in it"
        )
    return text


def _prompt(rubric: str, worst: float, best: float) -> AgentPrompt:
    """Return the judge's prompt; its hash is of the rubric and the scale too."""
    packaged = packaged_prompt("judge")

    def filled(text: str) -> str:
        return text.replace("$worst", f"{worst:g}").replace("$best", f"{best:g}")

    system = filled(packaged.system).replace("$rubric", rubric)
    digest = sha256("\x1f".join([packaged.hash, system]).encode(errors="replace")).hexdigest()
    return replace(packaged, system=system, request=filled(packaged.request), hash=digest[:HASH_DIGITS])


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricJudge(Judge):
    """Asks an agent that no rollout consults."""

    made: MadeAgent
    settings: JudgeSettings
    _places: "WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]" = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    async def judge(self, problem: Problem, response: str, rollout: RewardedRollout) -> Judgement:
        """Return where its score lies on the scale, from 0 to 1.

        Or else a policy could have itself left out of its group by what it writes.
        """
        found, scoreless = await self._asked(problem, response)
        if not scoreless:
            return found
        control, _ = await self._asked(problem, "")
        usage = found.usage + control.usage
        if control.value is None:
            return replace(found, usage=usage)
        detail = f"the worst, as the judge scores an empty response and not this one: {found.detail}"
        return replace(found, value=0.0, detail=detail, usage=usage)

    async def _asked(self, problem: Problem, response: str) -> tuple[Judgement, bool]:
        """Return what came of a question, and whether the judge answered, with no score in it."""
        question = _question(problem)
        text, code = fenced(question, response)
        gold = problem.gold if self.settings.show_answer else ""
        query = AgentQuery(problem=question, rollout=text, request=gold, seed=int(code, 16))
        async with self._place():  # who waits for one must not use up the deadline of a judgement
            answer = await ask(self.made.agent, query, self.settings.timeout_s)
        if answer.reply is None:
            answered = answer.outcome is ConsultOutcome.EMPTY or answer.failure in _ANSWERED
            return Judgement(value=None, detail=answer.detail, usage=answer.usage), answered
        value, detail = self._read(answer.reply)
        said = answer.reply.text[:_SAID_CHARACTERS]
        return Judgement(value=value, detail=detail, said=said, usage=answer.usage), value is None

    def _read(self, reply: AgentReply) -> tuple[float | None, str]:
        """Return the reward, or None and why there is none."""
        worst, best = self.settings.scale
        most = self.made.fields.max_reply_tokens
        if reply.usage.completion_tokens >= most:  # of `SCORE: 10`, `SCORE: 1` may have come
            return None, f"the reply may be cut off; raise task.judge.max_reply_tokens = {most}"
        try:
            return (score_in(reply.text, worst, best) - worst) / (best - worst), ""
        except AgentError as error:
            return None, str(error)

    def _place(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if loop not in self._places:
            self._places[loop] = asyncio.Semaphore(self.made.fields.concurrency)
        return self._places[loop]


def fenced(question: str, response: str) -> tuple[str, str]:
    """Return a response between two lines with a code, and the code.

    The code is a digest of both texts, which the response cannot hold but by chance, and by none here: equal
    responses to a question are judged alike, from the cache where there is one.

    >>> fenced("1 + 1?", "2<|im_end|>")[0].splitlines()
    ['RESPONSE 27e27e4b3e2a915e', '2\u2039|im_end|>', 'END OF RESPONSE 27e27e4b3e2a915e']
    """
    inert = _MARKS.sub(lambda mark: "\u2039" if mark[0] == "<" else "\u00b7", response)
    code, tries = "", 0
    while not code or code in inert:
        material = json.dumps([question, response, tries])
        code, tries = sha256(material.encode()).hexdigest()[:_CODE_DIGITS], tries + 1
    return f"RESPONSE {code}\n{inert}\nEND OF RESPONSE {code}", code


def score_in(text: str, worst: float, best: float) -> float:
    """Return the score in the last line of a reply. Raises `AgentError` where it holds none on the scale.

    >>> score_in("SCORE: 2\\nNo:\\n**SCORE: 7.5/10**", 0, 10)
    7.5
    """
    last = (text.strip().splitlines() or [""])[-1]
    found = _SCORE.fullmatch(last) if len(last) <= _LINE_CHARACTERS else None
    if found is None:
        raise unreadable(f"its last line is no 'SCORE: number': {excerpt(last)!r}")
    score = float(found["score"])
    if found["of"] is not None and float(found["of"]) != best:
        raise unreadable(f"{excerpt(last)!r}, where the best is {best:g}")
    if not worst <= score <= best:
        raise unreadable(f"its score {score:g} lies outside task.judge.scale = [{worst:g}, {best:g}]")
    return score


def _question(problem: Problem) -> str:
    """Return what the policy was asked: the text, or all messages of a prompt with several."""
    if not problem.turns:
        return problem.text
    return "\n\n".join(f"{role}: {text}" for role, text in problem.turns)
