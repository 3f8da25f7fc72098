"""Write docs/settings.md from the settings themselves: `python scripts/settings_reference.py`."""

from pathlib import Path

from aipo.config.reference import describe
from aipo.config.warmstart import TraceSettings
from aipo.tasks.cpu.settings import CpuSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"

if __name__ == "__main__":
    PAGE.write_text(describe(TraceSettings, CpuSettings), encoding="utf-8")
    print(f"wrote {PAGE}")
