"""What a long benchmark has measured so far, a file a measurement, so that a call that was cut short goes on.

A part was measured in whole, by the same benchmark scripts in the same setting; a folder of others is an
error, never mixed into a record.

Not noticed: a change of the package between two calls. `dates` says from when to when a record was measured.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

OF = "of.json"


class Parts:
    """A folder of measurements."""

    def __init__(self, folder: Path, sources: Sequence[Path], setting: str = "") -> None:
        """Open or make it. Raises `SystemExit` for one that other sources or another setting wrote."""
        self.folder = folder
        digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
        mine = {"sources": digest, "setting": setting}
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / OF
        if not written.exists():
            if any(folder.iterdir()):
                raise SystemExit(f"--parts {folder}: not empty, and no folder of parts; name a new one")
            written.write_text(json.dumps(mine))
        elif json.loads(written.read_text()) != mine:
            raise SystemExit(
                f"--parts {folder}: measured with other code or another setting; remove it, or name a new one"
            )

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return a part as JSON knows it, measured now if it is not there."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            value = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "value": measure()}
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(value))
            unfinished.replace(path)
        return json.loads(path.read_text())["value"]

    def dates(self) -> list[str]:
        """Return when the first and the last part were measured."""
        dates = sorted(json.loads(p.read_text())["date"] for p in self.folder.glob("*.json") if p.name != OF)
        return dates[:1] + dates[-1:]

    def remove(self) -> None:
        """Remove all of it: the record is written."""
        shutil.rmtree(self.folder)
