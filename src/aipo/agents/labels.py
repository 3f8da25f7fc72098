"""The labelled fields of a reply, however a model dresses them: Markdown, LaTeX, JSON, a code fence, chat.

A label is looked for at the beginnings of lines, in any dress; one inside a line counts only in capitals with
a colon, and where no line begins with it. A field is a paragraph: what a model says behind it to be polite,
or to go on by itself, is not read. The work is linear in the reply.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

_LINE = (
    r"^(?P<dress>(?:[^\w\n:：\\<]|_|\d{{1,2}}[.)]|\\[a-z]{{4,9}}\{{|<[a-z]{{2,12}}>){{0,16}}<?)"
    r"(?:(?:the|my|final) ){{0,2}}(?P<label>{labels})"
    r"(?: ?#?\d{{1,2}})?(?P<closed>[*_\"'`}}$]{{0,6}})[ \t]{{0,3}}(?:[:：|→>\]]|=>?|[-–—](?=[ \t])|$)"
)
"""`FACT: words` as models like to dress it up: `- **Fact 1**: words`, `## Fact`, `\\textbf{FACT:} words`."""
_INSIDE = r"(?<![\w\"])(?P<dress>)(?P<label>{labels})(?P<closed>[*_}}$]{{0,6}}) ?[:：]"
_CLOSES = {"*": "*", "_": "_", "`": "`", '"': '"', "'": "'", "$": "$", "{": "}", "(": ")", "|": "|"}
"""What ends each dress."""
_FENCE = re.compile(r"^[ \t]{0,8}(?:`{3,}|~{3,})[^\n`]{0,40}$", re.MULTILINE)
_QUOTED = re.compile(r"^[ \t]{0,8}>", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n|\n[ \t]{0,3}(?:---|\*\*\*|___)[ \t]*(?=\n|$)")
"""What ends a paragraph: an empty line, or a rule across the page."""
_CLOSING_TAGS = re.compile(r"(?:</[a-z]{2,12}>\s*)+$", re.IGNORECASE)
_OPENS_DISPLAY = ("$$", r"\[", "```", "~~~", r"\begin")
_ENDS_DISPLAY = ("$$", r"\]", "```", "~~~", "}")


@dataclass(frozen=True, slots=True)
class Field:
    """A label, in capitals, and the words behind it, on one line."""

    label: str
    words: str


def labelled(text: str, labels: tuple[str, ...]) -> dict[str, str]:
    """Return the words of each label that a reply has; the first of two equal labels counts.

    >>> labelled("Sure!\\n\\n**FACT:** 7 is\\nprime.\\n\\nAnything else?", ("FACT",))
    {'FACT': '7 is prime.'}
    >>> labelled('{"verdict": "WRONG", "why": null}', ("VERDICT", "WHY"))
    {'VERDICT': 'WRONG', 'WHY': ''}
    """
    found: dict[str, str] = {}
    for field in fields(text, labels):
        found.setdefault(field.label, field.words)
    return found


def fields(text: str, labels: tuple[str, ...]) -> list[Field]:
    """Return every label with its words in the order of the reply, equal labels too."""
    if found := _of_object(text, labels):
        return found
    text = _inside_its_fence(text, labels)
    places = list(_places(text, labels))
    ends = [*(place.start() for place in places[1:]), len(text)]
    return [_field(place, text[place.end() : end]) for place, end in zip(places, ends, strict=False)]


def _places(text: str, labels: tuple[str, ...]) -> Iterator[re.Match[str]]:
    """Return where the labels stand, in the order of the text."""
    at_lines = list(_pattern(_LINE, labels, re.MULTILINE | re.IGNORECASE).finditer(text))
    missing = tuple(label for label in labels if all(label != match["label"].upper() for match in at_lines))
    inside = list(_pattern(_INSIDE, missing, re.NOFLAG).finditer(text)) if missing else []
    yield from sorted([*at_lines, *inside], key=lambda match: match.start())


@cache
def _pattern(pattern: str, labels: tuple[str, ...], flags: re.RegexFlag) -> re.Pattern[str]:
    return re.compile(pattern.format(labels="|".join(map(re.escape, labels))), flags)


def _field(place: re.Match[str], behind: str) -> Field:
    """Return a label's field. A dress put on before the label is taken off behind it, or else at the end."""
    dress = place["dress"]
    closing = "".join(_CLOSES.get(char, "") for char in dress)
    if ">" in dress:
        behind = _QUOTED.sub("", behind)
    words = behind[: len(closing)].lstrip(closing or " ") + behind[len(closing) :]
    taken_off = place["closed"] or len(words) < len(behind)
    words = " ".join(_paragraph(words).split())
    if "<" in dress:
        words = words[: -len(tags[0])] if (tags := _CLOSING_TAGS.search(words[-40:])) else words
    at_end = "|" if taken_off else closing
    return Field(place["label"].upper(), words.rstrip(f"{at_end} ") if closing else words)


def _paragraph(text: str) -> str:
    """Return the first paragraph, and those that it leads to: behind a colon, or around what is displayed."""
    first, *others = _PARAGRAPH.split(text.strip())
    kept = [first]
    for other in others:
        before, after = kept[-1].rstrip(), other.lstrip()
        leads = before.endswith((":", ",", "：")) or after.startswith(_OPENS_DISPLAY)
        if not leads and not (before.endswith(_ENDS_DISPLAY) and after[:1].islower()):
            break
        kept.append(other)
    return "\n".join(kept)


def _inside_its_fence(text: str, labels: tuple[str, ...]) -> str:
    """Return what the code fence holds that the first label stands in; the whole text where it is in none."""
    for index, part in enumerate(_FENCE.split(text)):
        if any(_places(part, labels)):
            return part if index % 2 else text
    return text


def _of_object(text: str, labels: tuple[str, ...]) -> list[Field]:
    """Return the fields of a JSON object that stands for the reply; [] where there is none with a label."""
    begin = text.find("{")
    if begin < 0:
        return []
    try:
        found, _ = json.JSONDecoder(strict=False).raw_decode(text, begin)
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, dict):
        return []
    said = {str(key).strip().upper(): value for key, value in found.items()}
    return [Field(label, _plain(said[label])) for label in labels if label in said]


def _plain(value: object) -> str:
    """Return a value of an object as words."""
    if isinstance(value, list):
        return " ".join(filter(None, map(_plain, value[:100])))
    return "" if value is None or isinstance(value, dict) else " ".join(str(value).split())
