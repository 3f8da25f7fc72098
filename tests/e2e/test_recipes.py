"""The recipes that come with the package: listed, copied with their bases, valid where they lie."""

from pathlib import Path

import pytest

from aipo.config.comparison import load_comparison
from aipo.config.loader import load_settings
from aipo.config.recipes import RECIPES, packaged_recipes
from support.policies import run_cli, succeed


def test_every_recipe_is_listed_with_what_it_is_for() -> None:
    lines = succeed("recipes", "list").stdout.splitlines()
    names = [line.split()[0] for line in lines]
    assert names == list(packaged_recipes())
    assert all(len(line.split()) > 3 for line in lines)


def test_a_copied_recipe_brings_its_bases_and_loads_alone(tmp_path: Path) -> None:
    succeed("recipes", "copy", "ablation/1-facts", "--to", tmp_path)
    copied = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.toml")}
    assert copied == {"ablation/1-facts.toml", "tiny.toml"}
    assert load_comparison(tmp_path / "ablation" / "1-facts.toml")


def test_a_changed_file_is_not_overwritten(tmp_path: Path) -> None:
    succeed("recipes", "copy", "own", "--to", tmp_path)
    succeed("recipes", "copy", "own.toml", "--to", tmp_path)  # the same text: nothing is lost
    (tmp_path / "own.toml").write_text("[run]\nseed = 7\n")
    result = run_cli("recipes", "copy", "own", "--to", tmp_path)
    assert result.exit_code == 2 and "own.toml is there already" in result.output
    assert load_settings(tmp_path / "own.toml").run.seed == 7


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    result = run_cli("recipes", "copy", "onw", "--to", tmp_path)
    assert result.exit_code == 2 and "did you mean 'own'" in result.output
    assert not list(tmp_path.iterdir())


def test_without_recipes_at_hand_the_error_says_where_some_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_cli("train", "recipes/own.toml")
    assert result.exit_code == 2 and "aipo recipes list" in " ".join(result.output.split())


def test_the_folder_of_a_checkout_is_that_of_the_package() -> None:
    assert Path("recipes").resolve() == RECIPES
