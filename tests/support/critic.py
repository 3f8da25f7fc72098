"""An agent of a user's own: what it is, and what answers for it. No file of the package knows of it."""

from dataclasses import dataclass

from aipo.agents.base import AgentQuery, AgentReply
from aipo.agents.labels import labelled
from aipo.agents.prompting import prompt_of
from aipo.agents.replies import Reading, unreadable
from aipo.agents.spec import AgentSpec
from aipo.config.agents import AgentFields

PROMPT = """# critic prompt, version 1
You read a student's reasoning and name its weakest step. Reply with one line:
WEAKEST: the step, in the student's own words
---
@problem Problem: $problem
@rollout The reasoning so far: $rollout
@request The student asks: $request
"""


def read_critique(text: str) -> Reading:
    """Read what a model that stands behind the critic wrote."""
    step = labelled(text, ("WEAKEST",)).get("WEAKEST")
    if not step:
        raise unreadable("no line 'WEAKEST: …'", text)
    return Reading(step)


CRITIC = AgentSpec(
    name="critic",
    tag="critic",
    offer="- $open what you wonder about $close names the weakest step of your reasoning.",
    prompt=prompt_of(PROMPT),
    reader=read_critique,
    canary="Which step is the weakest?",
    rehearsal="which step is the weakest?",
    colour=("#7a3b8f", "#c79be0"),
)


@dataclass(frozen=True)
class LastWords:
    """A back end in Python: the critic's answer is the last word that was written."""

    spec: AgentSpec
    settings: AgentFields

    @property
    def name(self) -> str:
        """The critic's."""
        return self.spec.name

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return the feedback."""
        words = [word for word in query.rollout.split() if not word.startswith("<")]
        return AgentReply(text=" ".join(words[-1:]) or "ok")
