"""The interaction protocol as text: tags, requests, stop strings, notices, and forged tags made inert.

Only what the policy sampled is parsed; a control string from anywhere else is made inert first. Tags and
inline feedback follow docs/method.md#interaction [ours, after the prototype].
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from string import Template
from types import MappingProxyType

from aipo.consult.packaged import packaged
from aipo.consult.requests import Malformed as Malformed
from aipo.consult.requests import Request as Request
from aipo.core.types import ConsultOutcome

NOTICES: Mapping[ConsultOutcome, str] = MappingProxyType(
    {
        ConsultOutcome.REFUSED_LIMIT: "no consultations left",
        ConsultOutcome.MALFORMED: "request not understood",
        ConsultOutcome.TIMEOUT: "agent unavailable",
        ConsultOutcome.AGENT_ERROR: "agent unavailable",
        ConsultOutcome.EMPTY: "no answer",
    }
)
"""What the policy reads, between the feedback tags, when no agent's words come: all of it SCAFFOLD."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The tags of a run. Names stand without angle brackets: `verify` means `<verify>` and `</verify>`.

    Raises `ValueError`, naming field, value and fix, for a name that cannot be a tag, for two equal names and
    for an enabled agent without a tag.

    >>> tags = {"knowledge": "knowledge", "verify": "verify"}
    >>> protocol = Protocol(tags=tags, feedback_tag="feedback", enabled=("knowledge",))
    >>> protocol.stop_strings
    ('</knowledge>',)
    >>> protocol.parse("A spider ... <knowledge> legs of a spider </knowledge>")
    Request(agent='knowledge', text='legs of a spider', start=13)
    >>> protocol.parse("legs </knowledge>")
    Malformed(reason='</knowledge> closes nothing', start=5)
    >>> protocol.parse("A spider has 8 legs. <verify> 8? </verify>") is None  # not enabled: mere text
    True
    """

    tags: Mapping[str, str]
    """By agent: of the enabled ones, and of those whose tags are control strings all the same."""
    feedback_tag: str
    enabled: tuple[str, ...]
    must_be_asked: frozenset[str] = frozenset()
    """Agents to whom an empty request is malformed; to the others it means "look at what I have"."""
    offers: Mapping[str, str] = field(default_factory=dict)
    """By agent, in order: the line of the packaged consulting prompt; `$open` and `$close` are its tags."""
    examples: tuple[tuple[str, str], ...] = ()
    """Worked consultations of the consulting prompt: a problem, and its solution with help, tags included."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", dict(self.tags))
        object.__setattr__(self, "offers", dict(self.offers))
        names = {f"consult.tags.{agent}": name for agent, name in self.tags.items()}
        names["consult.feedback_tag"] = self.feedback_tag
        owners: dict[str, str] = {}
        for setting, name in names.items():
            _check_name(setting, name)
            if name in owners:
                raise ValueError(f"{setting} = {name!r} is also {owners[name]}; give each its own name")
            owners[name] = setting
        for agent in self.enabled:
            if agent not in self.tags:
                raise ValueError(f"agents.enabled = {agent} has no tag; name one under consult.tags.{agent}")
            if self.enabled.count(agent) > 1:
                raise ValueError(f"agents.enabled = {agent} twice; name each agent once")

    def request_open(self, agent: str) -> str:
        """Return the tag that opens a request. Raises `KeyError` for an agent without a tag."""
        return f"<{self.tags[agent]}>"

    def request_close(self, agent: str) -> str:
        """Return the tag that ends a request. Raises `KeyError` for an agent without a tag."""
        return f"</{self.tags[agent]}>"

    @property
    def feedback_open(self) -> str:
        """The tag before an agent's words."""
        return f"<{self.feedback_tag}>"

    @property
    def feedback_close(self) -> str:
        """The tag after an agent's words."""
        return f"</{self.feedback_tag}>"

    @property
    def tools(self) -> str:
        """Nothing is handed to the chat template: the system prompt offers the agents."""
        return ""

    @property
    def ends_with_turn(self) -> bool:
        """A request ends with its end tag, never with the turn."""
        return False

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The end tags at which generation stops: those of enabled agents."""
        return tuple(map(self.request_close, self.enabled))

    @property
    def control_strings(self) -> tuple[str, ...]:
        """Every tag, of enabled agents or not; in foreign text each of them must be made inert."""
        names = (*self.tags.values(), self.feedback_tag)
        return tuple(tag for name in names for tag in (f"<{name}>", f"</{name}>"))

    def parse(self, text: str) -> Request | Malformed | None:
        """Return the first request in what the policy sampled since the last insertion; None if it made none.

        The first end tag of an enabled agent decides; characters after it do not matter. The request stands
        between the last matching open tag before it and it, and holds no other tag.
        """
        ends = ((text.find(self.request_close(agent)), agent) for agent in self.enabled)
        end, agent = min((found for found in ends if found[0] >= 0), default=(-1, None))
        if agent is None:
            return None
        start = text.rfind(self.request_open(agent), 0, end)
        if start < 0:
            return Malformed(f"{self.request_close(agent)} closes nothing", end)
        body = text[start + len(self.request_open(agent)) : end]
        nested = next((tag for tag in self.control_strings if tag in body), None)
        if nested:
            return Malformed(f"{nested} inside {self.request_open(agent)}", start)
        if agent in self.must_be_asked and not body.strip():
            return Malformed(f"{self.request_open(agent)} asks nothing", start)
        return Request(agent, body.strip(), start)

    def written(self, agent: str, request: str) -> str:
        """Return a request between its tags, as the policy would write it."""
        return f"{self.request_open(agent)}{request}{self.request_close(agent)}"

    def offer(self) -> str:
        """Return the packaged prompt, a line for each agent in the place of `@agents`."""
        feedback = {"feedback_open": self.feedback_open, "feedback_close": self.feedback_close}
        lines = []
        for line in packaged("consulting").splitlines():
            if line != "@agents":
                lines.append(Template(line).substitute(feedback))
                continue
            for name, offer in self.offers.items():
                tags = {"open": self.request_open(name), "close": self.request_close(name)}
                lines.append(Template(offer).substitute(tags))
        return "\n".join(lines)


def _check_name(field: str, name: str) -> None:
    # Every tag then begins with `<`, ends with `>` and holds neither in between, so no two overlap. A leading
    # slash could make an open tag equal another's end tag.
    if not name or any(char in "<>" or char.isspace() for char in name) or name.startswith("/"):
        raise ValueError(
            f"{field} = {name!r} cannot be a tag; "
            "use a name without angle brackets, white space or a leading '/'"
        )


def neutralise(text: str, forbidden: Iterable[str]) -> str:
    """Return `text` with every forbidden string made inert; the result contains none of them.

    Angle brackets turn into look-alikes; in a forbidden string without them a middle dot replaces the first
    character. What is put in occurs in no forbidden string, so nothing new can arise. The length is kept,
    harmless text is returned as it is, and the work is linear in the text. Raises `ValueError` for an empty
    forbidden string.

    >>> neutralise("</feedback> 1 < 2 <|im_end|> [PAD]", ["</feedback>", "<|im_end|>", "[PAD]"])
    '‹/feedback› 1 < 2 ‹|im_end|› ·PAD]'
    """
    strings = sorted(set(forbidden), key=lambda string: (-len(string), string))
    if "" in strings:
        raise ValueError("a forbidden string is empty; name at least one character")
    taken = set().union(*strings)
    look_alikes = str.maketrans({"<": _unused("\u2039", taken), ">": _unused("\u203a", taken)})
    dot = _unused("\u00b7", taken)
    for string in strings:
        inert = string.translate(look_alikes)
        inert = inert if inert != string else dot + string[1:]
        while string in text:  # more than once only where a string overlaps itself, at most its length times
            text = text.replace(string, inert)
    return text


def _unused(preferred: str, taken: set[str]) -> str:
    return next(char for char in map(chr, range(ord(preferred), sys.maxunicode)) if char not in taken)
