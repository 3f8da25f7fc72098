"""What the terminal gets of foreign text: an escape sequence is shown, whoever wrote it, and never sent."""

from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aipo.cli import console as module
from aipo.cli.console import SafeConsole, plain_errors
from aipo.config.loader import load_settings
from aipo.training.events import StopRunError
from aipo.training.journal import STOPPED, Journal

HOSTILE = "agent error: \x1b[2J\x1b]0;owned\x07\x9b31m\u202e end"


def shown(output: StringIO) -> str:
    """Return what was written, after asserting that nothing in it moves a cursor or turns text around."""
    text = output.getvalue()
    assert "end" in text and "[2J" in text
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e"}, text
    return text


@pytest.fixture
def output() -> StringIO:
    return StringIO()


@pytest.fixture
def console(output: StringIO) -> SafeConsole:
    return SafeConsole(file=output, force_terminal=True, color_system=None, width=200, highlight=False)


@pytest.mark.parametrize("error", [ValueError, StopRunError])
def test_an_error_that_quotes_an_agent_does_not_move_the_cursor(
    error: type[Exception], console: SafeConsole, output: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "errors", console)
    with pytest.raises(typer.Exit), plain_errors():
        raise error(HOSTILE)
    assert "\\x1b[2J" in shown(output) and "\\u202e" in output.getvalue()


def test_tables_and_texts_are_no_way_around_it(console: SafeConsole, output: StringIO) -> None:
    table = Table("what")
    table.add_row(Text(HOSTILE))
    console.print(table)
    console.print(Text(HOSTILE, style="bold"))
    console.rule(Text(HOSTILE))
    shown(output)


def test_what_rich_itself_sends_still_works(console: SafeConsole, output: StringIO) -> None:
    """A live screen hides the cursor and shows it again; a passing line ends with a carriage return."""
    with Live(Text("a line"), console=console, auto_refresh=False):
        pass
    console.print("passing", end="\r", markup=False)
    assert "\x1b[?25l" in output.getvalue() and "\x1b[?25h" in output.getvalue()
    assert output.getvalue().endswith("passing\r")
    assert "\\x1b" not in output.getvalue()


def test_the_reason_that_a_stop_leaves_in_its_folder_can_be_shown_with_cat(tmp_path: Path) -> None:
    settings = load_settings(None, [f"run.output={tmp_path / 'run'}"])
    journal = Journal(settings)
    journal.say_stopped(HOSTILE + "\rand over it")
    journal.close()
    left = (tmp_path / "run" / STOPPED).read_bytes().decode()
    shown(StringIO(left))
    assert "\r" not in left  # it would write over the words before it
