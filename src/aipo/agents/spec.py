"""What an agent is, whatever answers behind it: everything that other parts of the package ask of its name.

Settings, protocol, prompts, canary, rehearsal, metrics, plots and report read these fields; none of them has
a list of agents of its own.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from aipo.agents.prompting import AgentPrompt
from aipo.agents.replies import Reading, read_reply

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """One agent. Raises `ValueError` for a name that cannot be a table of settings and part of a metric."""

    name: str
    """As in `[agents.name]`, `consultations/name` and the records."""
    tag: str
    """Of its requests, without angle brackets, unless `consult.tags` has another."""
    offer: str
    """The line of the packaged consulting prompt that offers it; `$open` and `$close` stand for its tags."""
    prompt: AgentPrompt
    """What a model that answers for it is sent."""
    reader: Callable[[str], Reading]
    """Reads what such a model wrote; see `aipo.agents.replies.read_reply`."""
    canary: str
    """A question that a model can answer of any problem that it is shown, with a restatement of it as the
    student's first words: `aipo agents check` asks it about the user's own rows."""
    rehearsal: str
    """What `aipo doctor` asks it in the policy's place, unless the task says what is asked of it."""
    colour: tuple[str, str]
    """In the report: on light and on dark paper, as in `#0067a5`."""
    may_be_silent: bool = False
    """Whether no words are a proper answer to its questions."""
    must_be_asked: bool = False
    """Whether an empty request is malformed: it does not read the rollout by itself."""
    approves: bool = False
    """Whether it checks, so that its replies may approve of a rollout."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"AgentSpec.name = {self.name!r}: use small letters, digits and '_' only")
        if not all(map(_COLOUR.fullmatch, self.colour)):
            raise ValueError(f"AgentSpec.colour = {self.colour!r}: write each as in '#0067a5'")

    def read(self, text: str) -> Reading:
        """Return what a model's reply says. Raises `AgentError` for one that is not in the agent's format."""
        return read_reply(self.reader, text)
