"""Check the tests of the method: `python scripts/mutants.py [text ...]`; exit status 1 unless all are killed.

Each mutant is one mistake, made by hand, in a temporary copy of `src`; the tests of `core` and of credit and
batches run against that copy. Survivors, and patterns that stand not exactly once in their file, fail. With
texts, only mutants with one of them in file or code are run. The working tree is never touched.

Mutation tools were tried. cosmic-ray makes 2,303 mutants of the same files, most of them of operators and
numbers, hours of tests, and equivalents that a person sorts out. mutmut 3.8.1 makes 1,342, in functions only;
17 of the 211 in `mutant_list.py` are among them, and 21 are outside functions (an estimator's entry, an
epsilon), where it makes none. On `core/advantages.py` with two test files it killed 95 of the first 106, at
0.7 s of CPU each, because it imports once and forks: at that rate, all files take 16 minutes. Of 11 survivors
6 drop `strict=True` of a `zip`. It finds untested boundaries, but these are the mistakes that one would make.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mutant_list import FILES

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "rollout/elicit.py": "tests/unit/rollout/test_elicit.py",
    "training/eliciting.py": "tests/unit/rollout/test_elicit.py",
    "core/tokens.py": "tests/property/test_tokens.py",
    "core/advantages.py": "tests/property/test_advantages.py",
    "core/rewards.py": "tests/property/test_advantages.py",
    "core/surrogates.py": "tests/unit/core/test_surrogates.py",
    "core/algorithms.py": "tests/unit/core/test_algorithms.py",
    "core/coefficients.py": "tests/unit/core/test_coefficients.py",
    "core/divergence.py": "tests/unit/core/test_divergence.py",
    "core/objective.py": "tests/property/test_objective.py",
    "core/batch.py": "tests/property/test_batch.py",
    "training/algorithm.py": "tests/unit/core/test_algorithms.py",
    "training/batch.py": "tests/unit/training/test_train_batch.py",
    "training/credit.py": "tests/unit/training/test_experience.py",
    "training/schedule.py": "tests/unit/training/test_schedule.py",
    "core/passk.py": "tests/property/test_passk.py",
}
"""All of them judge each mutant; that of its own file, or else of the objective, comes first and alone: the
quickest way to a kill."""

GUARD = '''
"""Pytest plugin of scripts/mutants.py: few examples, the same every time, and of the copied sources only."""
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings


def pytest_configure() -> None:
    settings.register_profile("mutants", max_examples=25, derandomize=True, database=None, deadline=None)
    settings.load_profile("mutants")


def pytest_collection_finish() -> None:
    ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "aipo"]
    source = Path(os.environ["MUTANT_SOURCE"])
    if not ours or not all(Path(module.__file__).is_relative_to(source) for module in ours):
        pytest.exit("aipo was not imported from the copy", returncode=9)
'''


@dataclass(frozen=True)
class Mutant:
    """One mistake: in `file`, `new` instead of `old`."""

    file: str
    old: str
    new: str


MUTANTS = [Mutant(file, old, new) for file, pairs in FILES.items() for old, new in pairs]


def tests_pass(folder: Path, tests: Collection[str]) -> bool:
    """Return whether the tests pass on the copy in `folder`.

    Raises `RuntimeError` when they could not judge: the copy cannot be imported, or something else was.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}",
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutant as long as the original would be taken for it
        "MUTANT_SOURCE": str(folder / "src"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "mutant_guard", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *sorted(tests)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if run.returncode not in (0, 1):  # 0: all passed; 1: some failed
        raise RuntimeError(f"pytest ended with {run.returncode}:\n{run.stdout[-1500:]}{run.stderr[-500:]}")
    return run.returncode == 0


def verdict(mutant: Mutant, folder: Path) -> str:
    """Make the mistake in the copy, run the tests, undo it; return what came of it."""
    path = folder / "src" / "aipo" / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return f"BROKEN (the pattern stands {text.count(mutant.old)} times in the file)"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        own = {TESTS.get(mutant.file, TESTS["core/objective.py"])}
        survived = tests_pass(folder, own) and tests_pass(folder, set(TESTS.values()) - own)
        return "SURVIVED" if survived else "killed"
    except RuntimeError as error:
        return f"BROKEN ({error})"
    finally:
        path.write_text(text, encoding="utf-8")


def main(texts: list[str]) -> int:
    """Run the mutants whose file or code holds one of the texts, or all; return the exit status."""
    chosen = [m for m in MUTANTS if not texts or any(t in f"{m.file}\n{m.old}\n{m.new}" for t in texts)]
    with tempfile.TemporaryDirectory(prefix="aipo-mutants-") as name:
        folder = Path(name).resolve()
        shutil.copytree(
            ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
        (folder / "mutant_guard.py").write_text(GUARD, encoding="utf-8")
        if not tests_pass(folder, TESTS.values()):
            print("the tests fail without any mutant: nothing can be said of them")
            return 1
        killed = 0
        for mutant in chosen:
            result = verdict(mutant, folder)
            killed += result == "killed"
            print(f"{result}  {mutant.file}  {mutant.old!r} -> {mutant.new!r}", flush=True)
    print(f"{killed} of {len(chosen)} mutants killed")
    return 0 if chosen and killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
