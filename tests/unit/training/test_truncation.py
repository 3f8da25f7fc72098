"""Whether a run corrects for its sampler is decided by who samples, once, and stands in its settings."""

import pytest

from aipo.config.loader import load_settings
from aipo.training.algorithm import with_truncation


@pytest.mark.parametrize(
    ("given", "in_process", "becomes"),
    [("auto", True, 0.0), ("auto", False, 2.0), ("0", False, 0.0), ("3", True, 3.0), ("3", False, 3.0)],
)
def test_auto_is_2_where_a_server_samples_and_0_in_process(
    given: str, in_process: bool, becomes: float
) -> None:
    settings = load_settings(None, [f"algorithm.mismatch_truncation={given}"])
    assert with_truncation(settings, in_process).algorithm.mismatch_truncation == becomes


def test_a_run_goes_on_with_what_auto_became() -> None:
    begun = load_settings(None, ["algorithm.mismatch_truncation=0"])
    resumed = with_truncation(load_settings(None), False, begun)
    assert resumed.algorithm.mismatch_truncation == 0.0


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="algorithm.mismatch_truncation"):
        load_settings(None, ["algorithm.mismatch_truncation=-1"])
