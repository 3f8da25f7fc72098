"""What torch says of a rank that is gone, anywhere in an update, is one error with the way out."""

import pytest

from aipo.training.events import LostRankError, NonFiniteError
from aipo.training.ranks import ALONE, Ranks

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv"


def test_what_gloo_says_in_a_backward_pass_names_the_timeout_and_the_way_on() -> None:
    said = r"run.rank_timeout_s = 5 .*The same command continues"
    with pytest.raises(LostRankError, match=said), Ranks(0, 2, timeout_s=5.0).exchanging():
        raise RuntimeError(GLOO)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), NonFiniteError("loss"), ValueError(GLOO)])
@pytest.mark.parametrize("ranks", [Ranks(0, 2, timeout_s=5.0), ALONE])
def test_other_errors_stay_what_they_are(error: Exception, ranks: Ranks) -> None:
    with pytest.raises(type(error)) as raised, ranks.exchanging():
        raise error
    assert raised.value is error
