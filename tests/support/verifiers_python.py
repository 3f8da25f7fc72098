"""The Python with verifiers that tests use where there is one, and environments for it."""

import os
from pathlib import Path

import pytest

ENVIRONMENTS = Path(__file__).with_name("verifiers_environments")
REAL = os.environ.get("AIPO_VERIFIERS_PYTHON", "/work/venv-verifiers-classic/bin/python")
"""`python -m venv V && V/bin/pip install 'verifiers<0.2'`, then AIPO_VERIFIERS_PYTHON=V/bin/python."""
needs_verifiers = pytest.mark.skipif(
    not Path(REAL).exists(), reason=f"no Python with verifiers: AIPO_VERIFIERS_PYTHON = {REAL} is not there"
)
