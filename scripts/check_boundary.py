"""Check that the boundary moved: AIPO's pass@8 on hard problems, alone, is above GRPO's by a margin.

Usage: check_boundary.py RECORDS. In each solo mode AIPO must lead by at least 0.2, so far that
flipping signs problem by problem would give it less than once in a thousand times.
"""

import sys
from pathlib import Path

from aipo.comparison.records import read_run
from aipo.comparison.report import RUNS
from aipo.evaluation.records import at_last_step
from aipo.evaluation.statistics import paired_difference

MARGIN, P_VALUE, K = 0.2, 1e-3, 8


def main() -> int:
    """Print one line for each solo mode; return 1 if one of them fails."""
    runs = [read_run(path) for path in (Path(sys.argv[1]) / RUNS).glob("*.json")]
    records = at_last_step(record for run in runs for record in run.evaluations)
    modes = sorted({record.mode for record in records})
    failed = 0
    for mode in modes:
        aipo, grpo = ([r for r in records if r.mode == mode and r.method == m] for m in ("AIPO", "GRPO"))
        d = paired_difference(aipo, grpo, "hard", K)
        passed = d.value >= MARGIN and d.p_value < P_VALUE
        failed += not passed
        print(
            f"hard, {mode}, pass@{K}: AIPO - GRPO = {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}], "
            f"p = {d.p_value:.2g}: {'passed' if passed else 'FAILED'}"
        )
    print(f"boundary: {len(modes) - failed} passed, {failed} failed")
    return 1 if failed or not modes else 0


if __name__ == "__main__":
    sys.exit(main())
