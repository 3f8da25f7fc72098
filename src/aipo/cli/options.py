"""Arguments that several verbs share.

Owns their wording. Must not load anything. Invariant: the same word means the same in every verb.
"""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    Path, typer.Argument(help="TOML recipe, for example recipes/tiny.toml. All fields: docs/settings.md.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the recipe, as section.field=value, for example train.steps=50."),
]
