"""`aipo train`: one run, from its recipe to an exported policy."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import typer

from aipo.assembly.run import train as train_run
from aipo.cli.console import plain_errors
from aipo.cli.screen import Terminal
from aipo.config.loader import load_settings
from aipo.training.ranks import end_process


def train(
    recipe: Path, overrides: Sequence[str], use_cache: bool = True, may_change: Collection[str] = ()
) -> None:
    """Train a policy; see `aipo train --help`."""
    with several_end_at_once(), plain_errors():
        settings = load_settings(recipe, overrides)
        reporter = Terminal(str(settings.run.output))
        train_run(settings, reporter=reporter, use_cache=use_cache, may_change=may_change)


@contextmanager
def several_end_at_once() -> Iterator[None]:
    """End a process of several at the end of the block, with the exit code that was raised in it."""
    exit_code = 0
    try:
        yield
    except typer.Exit as error:
        if not torch.distributed.is_initialized():
            raise
        exit_code = error.exit_code
    if torch.distributed.is_initialized():
        end_process(exit_code)
