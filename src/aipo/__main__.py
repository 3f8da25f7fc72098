"""`python -m aipo` is `aipo`."""

from aipo.cli.main import app

app()
