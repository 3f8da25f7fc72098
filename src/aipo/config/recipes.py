"""The recipes that come with the package, by name: `own`, `gpu/qwen2.5-7b`, …

They are ordinary TOML files in `aipo/recipes`, which the wheel holds; `recipes` in a checkout is that folder.
"""

import shutil
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def packaged_recipes() -> dict[str, Path]:
    """Return the packaged recipes by name, which is the path below the folder without its ending."""
    return {
        path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in sorted(RECIPES.rglob("*.toml"))
    }


def summary(recipe: Path) -> str:
    """Return the first sentence of a recipe's opening comment; '' if it has none."""
    lines = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.strip("# "))
    sentence = " ".join(lines).partition(". ")[0]
    return sentence.removesuffix(".")


def copy_recipe(name: str, folder: Path) -> list[Path]:
    """Copy a packaged recipe, and the recipes that it is based on, to a folder; return what was written.

    A file that is there with the same text is left. Raises `ValueError` for an unknown name, and for a file
    that is there with another text: nothing is copied then.
    """
    known = packaged_recipes()
    if name.removesuffix(".toml") not in known:
        near = get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{name!r} is no packaged recipe; {hint}`aipo recipes list` names them")
    sources = list(_with_bases(known[name.removesuffix(".toml")]))
    copies = {source: folder / source.relative_to(RECIPES) for source in sources}
    for source, copy in copies.items():
        if copy.exists() and copy.read_bytes() != source.read_bytes():
            raise ValueError(f"{copy} is there already and differs; move it away, or choose another --to")
    for source, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return list(copies.values())


def _with_bases(recipe: Path) -> Iterator[Path]:
    """Yield a recipe and every packaged one that it names as a `base`, whatever the table."""
    yield recipe
    tables: list[object] = [tomllib.loads(recipe.read_text(encoding="utf-8"))]
    while tables:
        table = tables.pop()
        if isinstance(table, list):
            tables.extend(table)
        elif isinstance(table, dict):
            if isinstance(base := table.get("base"), str):
                yield from _with_bases((recipe.parent / base).resolve())
            tables.extend(table.values())
