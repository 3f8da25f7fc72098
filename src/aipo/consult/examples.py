"""Worked consultations for the consulting prompt: what asking looks like, shown rather than described.

Only agents that are enabled are shown, with the tags of the run. A file of your own has the form of those in
`examples/`: a first line that no model reads, then for each example `@agent NAME`, `@problem` and the
assistant's turn, in which `$open`, `$close`, `$feedback_open` and `$feedback_close` stand for tags.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from aipo.consult.protocol import Protocol
from aipo.core.registry import Registry

EXAMPLES: Registry[str] = Registry("consult.examples", str, "aipo.examples")
"""Texts by name, in the form of those in `examples/`."""
_MARKS = ("$open", "$close", "$feedback_open", "$feedback_close")


class ExampleError(ValueError):
    """Examples cannot be used; the message says where and what to change."""


@dataclass(frozen=True, slots=True)
class Example:
    """One worked consultation."""

    agent: str
    problem: str
    turn: str
    """The assistant's, with names in the place of tags."""

    def shown(self, protocol: Protocol) -> tuple[str, str]:
        """Return the problem and the assistant's turn with the tags of `protocol`."""
        tags = {
            "open": protocol.request_open(self.agent),
            "close": protocol.request_close(self.agent),
            "feedback_open": protocol.feedback_open,
            "feedback_close": protocol.feedback_close,
        }
        return self.problem, Template(self.turn).safe_substitute(tags)


def worked_consultations(names: Sequence[str], file: Path | None, protocol: Protocol) -> list[Example]:
    """Return the examples of enabled agents: those of the registered names in order, then those of the file.

    Raises `ExampleError` for a file that cannot be read, and where there is none for any enabled agent.
    """
    texts = [(f"consult.examples = {name!r}", EXAMPLES[name]) for name in names]
    if file is not None:
        where = f"consult.examples_file = {str(file)!r}"
        try:
            texts.append((where, file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise ExampleError(f"{where} cannot be read: {error}") from error
    found = [example for where, text in texts for example in _parsed(text, where)]
    chosen = [example for example in found if example.agent in protocol.enabled]
    if texts and protocol.enabled and not chosen:
        known = ", ".join(dict.fromkeys(example.agent for example in found)) or "nobody"
        raise ExampleError(
            f"{texts[-1][0]}: none for agents.enabled = {list(protocol.enabled)} (there are for {known}); "
            "write some into a file and name it in consult.examples_file, or leave the setting out"
        )
    return chosen


def _parsed(text: str, where: str) -> list[Example]:
    parts = ("\n" + text.partition("\n")[2]).split("\n@agent ")[1:]
    return [_example(part, f"{where}, example {number}") for number, part in enumerate(parts, 1)]


def _example(part: str, where: str) -> Example:
    agent, _, rest = part.partition("\n")
    head, _, turn = rest.partition("\n")
    missing = [mark for mark in _MARKS if mark not in turn.replace("{", "").replace("}", "")]
    if not head.startswith("@problem ") or missing:
        what = f"{missing[0]} in the turn" if missing else "a line '@problem ...' behind '@agent ...'"
        raise ExampleError(f"{where} lacks {what}; see src/aipo/consult/examples for the form")
    return Example(agent.strip(), head.removeprefix("@problem ").strip(), turn.strip())


for _name in ("mathematics", "code", "facts"):
    EXAMPLES.register(
        _name, files("aipo.consult").joinpath("examples", f"{_name}.txt").read_text(encoding="utf-8")
    )
