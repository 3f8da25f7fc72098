"""`aipo report`: runs as one HTML file."""

from collections.abc import Sequence
from pathlib import Path

from aipo.cli.console import console, plain_errors
from aipo.report.page import ReportSettings, write_report

NAME = "report.html"


def report(runs: Sequence[Path], output: Path | None, rollouts: int, baseline: str) -> None:
    """Write the report; see `aipo report --help`."""
    target = output or (runs[0] / NAME)
    with plain_errors():
        if target.is_dir():
            raise ValueError(f"--output {str(target)!r} is a folder; name the file, for example {NAME}")
        written = write_report(runs, target, ReportSettings(rollouts=rollouts, baseline=baseline))
        console.print(
            f"{target}: {written.runs} runs, {written.rollouts:,} of {written.recorded:,} recorded rollouts, "
            f"{written.bytes / 1e6:.1f} MB",
            markup=False,
        )
