"""What a program may write under Landlock, a folder of its own, and what it sees in bubblewrap."""

import glob
import json
import tempfile
from pathlib import Path

import pytest

from aipo.grading.sandbox import scratch
from aipo.grading.sandbox.base import Limits, Outcome, Program, Sandbox, SandboxError
from aipo.grading.sandbox.detect import open_sandbox
from aipo.grading.sandbox.interpreter import find

LIMITS = Limits(cpu_s=1.0, wall_s=6.0, memory_mb=256)


def local(choice: str) -> Sandbox:
    try:
        return open_sandbox(choice)
    except SandboxError as error:
        assert "not isolated" not in str(error)  # that is no reason to skip
        print(reason := f"skipped: {error}")
        pytest.skip(reason)


LINKS = """
import os
for make in (os.symlink, os.link):
    for source in ("/etc/passwd", "own"):
        try: make(source, f"link-{make.__name__}"); print(make.__name__, source)
        except OSError: pass
for path in ("/tmp/x", "/var/tmp/x", "/dev/shm/x", "../x"):
    try: open(path, "w"); print(path)
    except OSError: pass
try: os.rename("own", "../own"); print("moved out")
except OSError: pass
try: os.mkfifo("pipe"); print("pipe")
except OSError: pass
print("tried")
"""


def scratches() -> set[str]:
    return set(glob.glob(f"{tempfile.gettempdir()}/{scratch.PREFIX}*"))


def test_a_program_under_landlock_writes_to_a_folder_of_its_own_only_and_it_is_gone() -> None:
    sandbox, before = local("landlock"), scratches()
    written = sandbox.run(Program(f"open('own', 'w').write('x')\n{LINKS}"), LIMITS)
    assert written.stdout in (b"tried\n", b"link own\ntried\n"), written
    assert scratches() <= before


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        # A file has its share of what may be open; those that are unlinked and open are bounded by both.
        ("for k in range(99): open('x', 'ab').write(b'x' * 65_536)", Outcome.EXITED),
        ("for k in range(10**6): open(f'{k}', 'wb').write(b'x' * 60_000)", Outcome.OUTPUT_LIMIT),
        ("for k in range(10**6): open(f'{k}', 'wb')", Outcome.OUTPUT_LIMIT),
        ("import os\nfor k in range(10**6): os.mkdir('a' * 99); os.chdir('a' * 99)", Outcome.OUTPUT_LIMIT),
    ],
)
def test_what_a_program_under_landlock_writes_is_bounded(source: str, outcome: Outcome) -> None:
    sandbox, before = local("landlock"), scratches()
    run = sandbox.run(Program(source), Limits(file_mb=4, cpu_s=20.0))
    assert run.outcome is outcome and (run.status == 1) is (outcome is Outcome.EXITED), run
    assert scratches() <= before


def test_a_folder_that_a_killed_grader_left_is_removed_and_one_in_use_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = Path(tempfile.mkdtemp(prefix=scratch.PREFIX))
    (left / "file").write_text("x")
    monkeypatch.setattr(scratch, "_ABANDONED_S", -1.0)
    used = scratch.Scratch(0, 1)
    scratch.remove_abandoned()
    assert not left.exists() and Path(used.path).exists()
    used.remove()
    assert not Path(used.path).exists()


LOOK = """
import json, os
print(json.dumps([os.path.join(folder, name) for folder, _, names in os.walk("/") for name in names]))
"""


def test_bubblewrap_shows_an_interpreter_its_libraries_and_four_devices() -> None:
    sandbox = local("bubblewrap")
    seen = json.loads(sandbox.run(Program(LOOK), Limits(output_bytes=1 << 24)).stdout)
    python = find("", for_everyone=False)
    allowed = (*python.paths, "/lib/", "/lib64/")
    others = [path for path in seen if not path.startswith(allowed)]
    assert sorted(others) == sorted([*python.devices, "/dev/stdin"])
    packages = python.packages
    assert [path for path in seen if path.startswith(packages)] == []
