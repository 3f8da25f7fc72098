"""The recipe of a comparison: methods that share everything but what they name, over the same seeds.

A comparison that loads has loadable settings for each of its methods.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from aipo.config.layers import flatten, load_layers
from aipo.config.loader import load_settings
from aipo.config.problems import SettingsError, dotted
from aipo.config.settings import Section, Settings
from aipo.config.toml import toml_value

Seed = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class Method(Section):
    """One method of a comparison."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][\w.+-]*$", description="Name of its folder and its key in results."
    )
    title: str = Field("", description="What tables and figures call it; '': its name.")
    overrides: tuple[str, ...] = Field(
        (), description="What it changes in the common settings: overrides, or a table of settings."
    )
    tune: bool = Field(
        True, description="Choose its learning rate from the grid; false: the grid is not used."
    )
    learning_rate_of: str = Field(
        "", description="Take the rate chosen for the method of this name instead of tuning again."
    )
    starts_from: str = Field(
        "", description="Begin with the policy that the method of this name ended with, seed by seed."
    )
    seeds: tuple[Seed, ...] = Field((), description="Its own seeds; []: those of the comparison.")

    @field_validator("overrides", mode="before")
    @classmethod
    def _as_overrides(cls, value: Any) -> Any:
        """Spell a table of settings as overrides, so that there is one form of them."""
        if isinstance(value, Mapping):
            return tuple(f"{dotted(key)}={toml_value(item)}" for key, item, _ in flatten(Settings, value))
        return tuple(value) if isinstance(value, list) else value

    def seeds_of(self, comparison: "ComparisonSettings") -> tuple[int, ...]:
        """Return the seeds that it is run with."""
        return self.seeds or comparison.seeds

    @property
    def label(self) -> str:
        """The title, or else the name."""
        return self.title or self.name


class ComparisonSettings(Section):
    """Methods, seeds and how learning rates are chosen."""

    name: str = Field(min_length=1, description="What the comparison is called in its report.")
    base: Path = Field(description="Recipe of the common settings, relative to this file.")
    output: Path = Field(description="Folder of the comparison; one folder inside for each method and seed.")
    records: Path | None = Field(
        None,
        description="Folder of the compact records, to be committed; a run that is recorded there is not run "
        "again. None: `records` in the output folder.",
    )
    baseline: str = Field(
        "", description="The method that others are compared with, pair by pair; '': the first."
    )
    focus: tuple[str, ...] = Field(
        (),
        description="Strata that matter most: together they weigh as much as all others when learning rates "
        "are chosen, tables show them first and at every k, figures show them alone. []: all count alike.",
    )
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, description="Seeds that are reported on.")
    tuning_seed: Seed = Field(1000, description="Seed of the tuning runs; none of `seeds`.")
    learning_rates: tuple[Rate, ...] = Field(
        (),
        description="The grid to choose from on the validation split. One value: every method's, unless its "
        "overrides say another. None: the recipe's.",
    )
    tuning_steps: int | None = Field(
        None, ge=1, description="Updates of a tuning run; none: as many as the run."
    )
    tuning_overrides: tuple[str, ...] = Field(
        (), description="What tuning runs change besides, such as fewer samples."
    )
    methods: tuple[Method, ...] = Field(
        min_length=1, description="What is compared, in the order of the tables."
    )
    warmstart: bool = Field(
        False,
        description="Begin all methods and seeds from one supervised warm start, made first; "
        "false: from the base's policy.model.",
    )
    overrides: tuple[str, ...] = Field(
        (), description="What all methods change in the base; a method's own overrides win over it."
    )
    command_line: tuple[str, ...] = Field(
        (),
        description="Set by `aipo compare` alone: overrides from the command line, which win over methods.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ComparisonSettings":
        names = [method.name for method in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"methods share a name: {', '.join(twice)}; each method needs its own")
        for method in self.methods:
            if method.learning_rate_of and method.learning_rate_of not in names:
                raise ValueError(
                    f"method {method.name}: learning_rate_of = {method.learning_rate_of!r} is no method; "
                    f"choose one of {', '.join(names)}"
                )
            if method.starts_from and method.starts_from not in names[: names.index(method.name)]:
                raise ValueError(
                    f"method {method.name}: starts_from = {method.starts_from!r} is no method before it"
                )
        if self.baseline and self.baseline not in names:
            raise ValueError(f"baseline = {self.baseline!r} is no method; choose one of {', '.join(names)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} holds a seed twice; name each once")
        if any(self.tuning_seed in seeds for seeds in (self.seeds, *(m.seeds for m in self.methods))):
            raise ValueError(
                f"tuning_seed = {self.tuning_seed} is one of seeds = {list(self.seeds)}: results may not be "
                "reported on the seed that settings were chosen on; choose another tuning_seed"
            )
        return self


class ComparisonRecipe(Section):
    """The file of a comparison: one table, `[compare]`."""

    compare: ComparisonSettings


def comparison_recipes(path: Path) -> list[Path]:
    """Return the recipe, or those of a folder of recipes in the order of their names; a folder of a run has
    none."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.glob("*.toml") if "[compare]" in p.read_text(encoding="utf-8"))


def load_comparison(path: Path, overrides: Sequence[str] = ()) -> ComparisonSettings:
    """Return the comparison of a recipe; `compare.*` overrides change it, all others change every method.

    Raises `SettingsError` that lists every problem of the file, of its base and of each method's settings.
    """
    own = [override for override in overrides if override.startswith("compare.")]
    common = [override for override in overrides if not override.startswith("compare.")]
    comparison = load_layers(ComparisonRecipe, path, own).compare
    comparison = comparison.model_copy(
        update={"base": path.parent / comparison.base, "command_line": (*comparison.command_line, *common)}
    )
    problems = _problems_of_methods(comparison)
    if problems:
        raise SettingsError(str(path), problems)
    return comparison


def method_settings(
    comparison: ComparisonSettings, method: Method, overrides: Sequence[str] = ()
) -> Settings:
    """Return a method's settings.

    Later ones win: base, a grid of one learning rate, comparison, method, command line, `overrides`.
    """
    only = comparison.learning_rates if len(comparison.learning_rates) == 1 and method.tune else ()
    changes = [*(f"train.learning_rate={rate}" for rate in only)]
    changes += [*comparison.overrides, *method.overrides, *comparison.command_line]
    return load_settings(comparison.base, [*changes, *overrides])


def common_settings(
    comparison: ComparisonSettings, overrides: Sequence[str] = (), model: type[Settings] = Settings
) -> Settings:
    """Return the settings that methods share, such as those of the warm start."""
    changes = [*comparison.overrides, *comparison.command_line, *overrides]
    return load_layers(model, comparison.base, changes)


def _problems_of_methods(comparison: ComparisonSettings) -> list[str]:
    """Return what is wrong with the common settings, then what is wrong with each method's alone."""
    shared, forced = comparison.overrides, comparison.command_line
    common = _problems_of(comparison.base, [*shared, *forced])
    own = [
        f"method `{method.name}`: {problem}"
        for method in comparison.methods
        for problem in _problems_of(comparison.base, [*shared, *method.overrides, *forced])
        if problem not in common
    ]
    return [*common, *own]


def _problems_of(recipe: Path, overrides: Sequence[str]) -> tuple[str, ...]:
    try:
        load_settings(recipe, overrides)
    except SettingsError as error:
        return error.problems
    return ()
