"""What several tests of faults share."""

from collections.abc import Iterator

import pytest

from support.kill_points import Zygote


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()
