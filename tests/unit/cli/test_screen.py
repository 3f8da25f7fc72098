"""The live screen: what a person at a terminal sees of a run, drawn by rich into a known width."""

import re
from io import StringIO

import pytest
from rich.console import Console

from aipo.cli import screen as module
from aipo.cli.screen import WORDS, LiveScreen, Terminal, course_of, one_line
from aipo.training.events import LastConsultation, Progress

HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold]\u202e" + "a" * 5000


def screen() -> tuple[Console, StringIO]:
    out = StringIO()
    return Console(file=out, force_terminal=True, width=120, color_system=None, highlight=False), out


def progress(step: int, said: LastConsultation | None = None, **metrics: float) -> Progress:
    return Progress(
        step=step,
        steps=10,
        metrics={"reward_solo": step / 10, "grad_norm": 2.0, **metrics},
        elapsed_s=30.0 * step,
        steps_done_now=step,
        last_consultation=said,
    )


def test_it_shows_where_the_run_is_its_numbers_and_the_last_consultation() -> None:
    console, out = screen()
    with LiveScreen(console, "runs/mine") as show:
        show(progress(2))
        show(
            progress(
                4,
                LastConsultation(
                    agent="knowledge", request="legs of a crab", outcome="answered", reply="crab 10"
                ),
            )
        )
    last = out.getvalue()[out.getvalue().rindex("runs/mine") :]
    for words in (
        "4/10",
        "remaining 3 min 0 s",
        "reward solo",
        "0.4",
        "▁▃",
        "knowledge",
        "“legs of a crab”",
        "crab 10",
    ):
        assert words in last, last


def test_foreign_words_cannot_write_to_the_terminal_nor_fill_it() -> None:
    console, out = screen()
    with LiveScreen(console, "r") as show:
        show(
            progress(1, LastConsultation(agent="verify", request=HOSTILE, outcome="answered", reply=HOSTILE))
        )
    drawn = out.getvalue()
    assert "\x1b[2J" not in drawn and "\x07" not in drawn and "\u202e" not in drawn
    assert "[2J ]0;owned [bold]" in drawn  # shown, not obeyed
    assert drawn.count("a" * (WORDS + 1)) == 0


def test_it_is_put_away_when_the_run_fails() -> None:
    console, out = screen()
    with pytest.raises(ValueError, match="broken"), LiveScreen(console, "r"):
        raise ValueError("broken")
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize(
    ("values", "share", "drawn"),
    [([0.0, 1.0], True, " █"), ([0.2, 0.2], True, "▁▁"), ([-5.0, 5.0], False, " █"), ([2.0], False, "▄")],
)
def test_a_course_is_drawn_from_least_to_most(values: list[float], share: bool, drawn: str) -> None:
    assert course_of(values, share) == drawn


def test_an_empty_request_is_an_empty_line() -> None:
    assert one_line("\n\t\x00") == ""


def test_what_takes_seconds_is_named_while_it_lasts_and_its_seconds_are_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = Console(file=StringIO(), force_terminal=False, highlight=False)
    monkeypatch.setattr(module, "console", log)
    with pytest.raises(ValueError), Terminal().doing("self-test [bold]"):
        assert log.file.getvalue() == "self-test [bold] … "
        raise ValueError
    assert re.fullmatch(r"self-test \[bold\] … \d+\.\d s\n", log.file.getvalue())

    terminal, out = screen()
    monkeypatch.setattr(module, "console", terminal)
    with Terminal().doing("self-test"):
        pass
    assert "0:00:00" in out.getvalue()
    assert re.search(r"self-test … \d+\.\d s\n$", out.getvalue())
