"""The mutants of scripts/mutants.py are mistakes in the code as it is now: a stale one proves nothing."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_every_piece_stands_exactly_once_in_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    sys.modules.pop("mutant_list", None)
    from mutant_list import FILES

    for file, pairs in FILES.items():
        code = (ROOT / "src" / "aipo" / file).read_text(encoding="utf-8")
        assert not [(file, old, code.count(old)) for old, _ in pairs if code.count(old) != 1]
        assert all(old != new for old, new in pairs)
