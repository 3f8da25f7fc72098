"""Settings: layers, overrides, round trips, and messages that say what to change."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aipo.config.comparison import load_comparison, method_settings
from aipo.config.loader import SettingsError, diff_settings, dump_settings, load_settings
from aipo.config.reference import describe
from aipo.config.settings import Settings
from aipo.config.toml import toml_text
from aipo.config.warmstart import TraceSettings
from aipo.core.types import VERIFY
from aipo.tasks.cpu.settings import CpuSettings

REPOSITORY = Path(__file__).parents[3]
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a recipe into the test's folder."""

    def write_recipe(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_recipe


def problems(recipe: Path | None, *overrides: str) -> tuple[str, ...]:
    """Load settings that must not load, and return what is said."""
    with pytest.raises(SettingsError) as caught:
        load_settings(recipe, overrides)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


class TestLayers:
    def test_without_anything_the_defaults_load(self) -> None:
        assert load_settings(None) == Settings()

    def test_a_recipe_wins_over_its_base_and_an_override_over_both(self, write: Write) -> None:
        write("base.toml", "[train]\nsteps = 1\nprompts_per_step = 5\nwarmup_steps = 7")
        recipe = write("recipe.toml", 'base = "base.toml"\n[train]\nsteps = 2\nprompts_per_step = 6')
        train = load_settings(recipe, ["train.steps=3"]).train
        assert (train.steps, train.prompts_per_step, train.warmup_steps) == (3, 6, 7)

    def test_a_base_is_found_relative_to_the_recipe_that_names_it(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        write("base.toml", "[train]\nsteps = 4")
        write("deep/middle.toml", 'base = "../base.toml"')
        assert load_settings(write("top.toml", 'base = "deep/middle.toml"')).train.steps == 4

    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ('agents.enabled=["verify"]', (VERIFY,)),
            ("agents.enabled=[]", ()),
            ("run.device=cuda", "cuda"),
            ("run.device='cuda'", "cuda"),
            ("run.output = runs/a#b", Path("runs/a#b")),
            ("task.answer_after=####", "####"),
            ("train.learning_rate=1e-6", 1e-6),
            ("train.learning_rate=1", 1.0),
            ("algorithm.split_baselines=false", False),
            ("evaluate.pass_at=[1, 2]", (1, 2)),
            ("consult.solo_prompt=", ""),
        ],
    )
    def test_an_override_is_toml_and_a_bare_word_is_a_string(self, override: str, value: object) -> None:
        section, name = override.partition("=")[0].strip().split(".")
        assert getattr(getattr(load_settings(None, [override]), section), name) == value

    def test_a_recipe_replaces_a_table_valued_field_and_an_override_may_set_one_entry(
        self, write: Write
    ) -> None:
        write("base.toml", "[train]\nstratum_mix = { easy = 0.5, hard = 0.5 }")
        recipe = write("recipe.toml", 'base = "base.toml"\n[train.stratum_mix]\nhard = 1.0')
        assert load_settings(recipe).train.stratum_mix == {"hard": 1.0}
        assert load_settings(recipe, ["train.stratum_mix.easy=0.1"]).train.stratum_mix == {
            "hard": 1.0,
            "easy": 0.1,
        }
        assert load_settings(recipe, ["train.stratum_mix={}"]).train.stratum_mix == {}
        assert load_settings(None, ["consult.tags.verify=ask"]).consult.tags == {VERIFY: "ask"}

    def test_a_recipe_that_sets_one_field_of_a_section_keeps_the_defaults_of_the_others(
        self, write: Write
    ) -> None:
        assert load_settings(write("r.toml", "[run]\nseed = 1")).run.output == Settings().run.output


class TestMessages:
    def test_an_unknown_key_names_the_file_the_key_and_the_nearest_key(self, write: Write) -> None:
        (problem,) = problems(write("r.toml", "[train]\nsetps = 3"))
        assert "r.toml: `train.setps`: unknown key; did you mean `train.steps`?" in problem

    @pytest.mark.parametrize(
        ("override", "meant"),
        [
            ("trian.steps=1", "`train.steps`"),
            (
                "algorithm.temperature=1",
                "`agents.temperature` or `rollout.temperature` or `evaluate.temperature`",
            ),
            ("train.steps.x=1", "`train.steps`"),
            ("seed=1", "`run.seed` or `evaluate.seed`"),
        ],
    )
    def test_the_nearest_key_is_looked_for_everywhere(self, override: str, meant: str) -> None:
        (problem,) = problems(None, override)
        assert problem.startswith(f"override `{override}`: ") and f"did you mean {meant}?" in problem

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            (
                'train.steps="10"',
                '`train.steps` = "10": should be a whole number; the default is `train.steps = ',
            ),
            ("train.steps=0", "should be greater than or equal to 1"),
            ("train.max_grad_norm=nan", "finite"),
            (
                "algorithm.split_baselines=1",
                "should be true or false; the default is `algorithm.split_baselines = true`",
            ),
            ("algorithm.coefficient=flored", "'floored'"),
            ("agents.enabled=verify", "should be a list"),
            ("train=5", "`train` = 5: should be a table"),
            ("consult.tags.verify=3", "the default is `consult.tags = {}`"),
            ("task.name=jsonl", "needs task.train_file"),
            ("train.steps", "not of the form section.field=value"),
            ("evaluate.pass_at=[1,", "malformed TOML"),
        ],
    )
    def test_a_wrong_value_names_field_value_constraint_and_fix(self, override: str, said: str) -> None:
        (problem,) = problems(None, override)
        assert problem.startswith(f"override `{override}`: ") and said in problem

    def test_malformed_toml_names_file_and_line(self, write: Write) -> None:
        assert (
            "r.toml:3: malformed TOML" in problems(write("r.toml", "[train]\nsteps = 3\nwarmup_steps ="))[0]
        )

    def test_a_recipe_in_another_encoding_is_said_to_be_so(self, tmp_path: Path) -> None:
        (tmp_path / "r.toml").write_bytes(b"# caf\xe9")
        assert "not UTF-8 at byte 5" in problems(tmp_path / "r.toml")[0]

    def test_a_missing_recipe_lists_the_recipes_nearby(self, write: Write, tmp_path: Path) -> None:
        write("toy.toml", "")
        write("main.toml", "")
        assert "no such file; recipes in" in problems(tmp_path / "man.toml")[0]
        assert problems(tmp_path / "man.toml")[0].endswith("main.toml, toy.toml")

    def test_a_circle_of_bases_is_shown(self, write: Write) -> None:
        write("a.toml", 'base = "b.toml"')
        (problem,) = problems(write("b.toml", 'base = "a.toml"'))
        assert "circle" in problem and "a.toml" in problem and "b.toml" in problem

    def test_a_base_must_be_a_path(self, write: Write) -> None:
        assert "`base` = 3: must be a path" in problems(write("a.toml", "base = 3"))[0]

    def test_all_problems_are_reported_at_once_with_the_layer_to_change(self, write: Write) -> None:
        write("base.toml", "[train]\nsteps = 0\nlearning_rate = 1.0")
        found = problems(
            write("r.toml", 'base = "base.toml"\n[train]\nlearning_rate = -1\n[runs]\nseed = 1'),
            "run.seed=-1",
            "run.sed=1",
        )
        assert len(found) == 5
        for start in (
            "base.toml: `train.steps` = 0",
            "r.toml: `train.learning_rate` = -1",
            "r.toml: `runs.seed`",
        ):
            assert sum(start in line for line in found) == 1
        for start in ("override `run.seed=-1`", "override `run.sed=1`"):
            assert sum(line.startswith(start) for line in found) == 1


class TestText:
    def test_a_dump_loads_to_equal_settings(self, write: Write) -> None:
        settings = load_settings(
            None,
            [
                "train.stratum_mix={easy=0.5, 'two words'=0.5}",
                'consult.solo_prompt="a \\"b\\"\\nc"',
                "train.learning_rate=1e-6",
            ],
        )
        assert load_settings(write("dump.toml", dump_settings(settings))) == settings

    def test_no_field_is_lost_in_a_dump_because_toml_has_no_none(self) -> None:
        lost = [
            f"{section}.{name}"
            for section, info in Settings.model_fields.items()
            for name, field in type(info.default).model_fields.items()
            if "None" in str(field.annotation) and field.default is not None
        ]
        assert lost == [], "a field that may be none must be none by default"

    @given(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.recursive(
                st.booleans()
                | st.integers(-(2**63), 2**63 - 1)
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(st.characters(exclude_categories=["Cs"])),
                lambda inner: (
                    st.lists(inner, max_size=3) | st.dictionaries(st.text("ab .'\""), inner, max_size=3)
                ),
                max_leaves=6,
            ),
            max_size=4,
        )
    )
    def test_what_is_written_as_toml_reads_back_the_same(self, table: dict[str, object]) -> None:
        assert tomllib.loads(toml_text(table)) == table

    def test_a_difference_names_the_key_the_old_and_the_new_value(self) -> None:
        changed = load_settings(None, ["run.seed=1", "consult.solo_prompt=x"])
        assert diff_settings(Settings(), changed) == [
            "run.seed: 0 -> 1",
            'consult.solo_prompt: (not set) -> "x"',
        ]
        assert diff_settings(changed, changed) == []

    def test_the_page_of_settings_is_up_to_date(self) -> None:
        page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
        assert page == describe(TraceSettings, CpuSettings), "run: python scripts/settings_reference.py"


COMPARISON = """
[compare]
name = "toy"
base = "base.toml"
output = "runs/toy"
seeds = [0, 1]
learning_rates = [1e-3, 3e-3]

[[compare.methods]]
name = "grpo"
overrides = ["agents.enabled=[]"]

[[compare.methods]]
name = "aipo"
title = "AIPO"
[compare.methods.overrides]
train = { steps = 5, stratum_mix = { easy = 0.9 } }
"""


class TestComparison:
    @pytest.fixture(autouse=True)
    def _base(self, write: Write) -> None:
        write("base.toml", "[train]\nsteps = 7")

    def problems(self, recipe: Path, *overrides: str) -> tuple[str, ...]:
        with pytest.raises(SettingsError) as caught:
            load_comparison(recipe, overrides)
        return caught.value.problems

    def test_each_method_is_the_base_with_its_own_changes(self, write: Write) -> None:
        comparison = load_comparison(write("compare.toml", COMPARISON))
        grpo, aipo = comparison.methods
        assert (grpo.label, aipo.label) == ("grpo", "AIPO")
        assert method_settings(comparison, grpo).agents.enabled == ()
        assert method_settings(comparison, grpo).train.steps == 7
        train = method_settings(comparison, aipo, ["run.seed=3"]).train
        assert (train.steps, train.stratum_mix) == (5, {"easy": 0.9})

    def test_a_grid_of_one_rate_is_every_methods_that_has_none_of_its_own(self, write: Write) -> None:
        one = COMPARISON.replace("[1e-3, 3e-3]", "[4e-4]").replace("steps = 5", "learning_rate = 7e-5")
        untuned = '\n[[compare.methods]]\nname = "untuned"\ntune = false\n'
        comparison = load_comparison(write("compare.toml", one + untuned))
        settings = [method_settings(comparison, method) for method in comparison.methods]
        assert [s.train.learning_rate for s in settings] == [4e-4, 7e-5, 1e-6]

    def test_the_command_line_changes_the_comparison_or_every_method(self, write: Write) -> None:
        recipe = write("compare.toml", COMPARISON)
        comparison = load_comparison(recipe, ["compare.seeds=[4]", "train.steps=1"])
        assert comparison.seeds == (4,)
        assert [method_settings(comparison, method).train.steps for method in comparison.methods] == [1, 1]

    def test_an_error_in_a_method_names_the_method(self, write: Write) -> None:
        (problem,) = self.problems(write("compare.toml", COMPARISON.replace("steps = 5", "setps = 5")))
        assert problem.startswith("method `aipo`: ") and "did you mean `train.steps`?" in problem

    def test_an_error_that_all_methods_share_is_said_once(self, write: Write) -> None:
        (problem,) = self.problems(write("compare.toml", COMPARISON), "train.setps=5")
        assert problem.startswith("override `train.setps=5`: ")

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("compare.base=missing.toml", "missing.toml: no such file"),
            ("compare.seeds=[]", "at least 1 item"),
            ("compare.seeds=[1, 1]", "holds a seed twice"),
            ("compare.seeds=[-1]", "`compare.seeds.0` = -1: should be greater than or equal to 0"),
            ("compare.tuning_seed=1", "is one of seeds"),
            ("compare.learning_rates=[0]", "should be greater than 0"),
            ("compare.seed=1", "did you mean `compare.seeds`?"),
            ('compare.methods=[{name="a"}, {name="a"}]', "share a name: a"),
            ('compare.methods=[{name="a/b"}]', "should match pattern"),
            ('compare.methods=[{name="a", titel="b"}]', "did you mean `compare.methods.title`?"),
        ],
    )
    def test_a_wrong_comparison_is_refused(self, write: Write, override: str, said: str) -> None:
        (problem,) = self.problems(write("compare.toml", COMPARISON), override)
        assert said in problem

    def test_a_recipe_that_is_no_comparison_is_told_what_is_missing(self, write: Write) -> None:
        found = self.problems(write("plain.toml", "[train]\nsteps = 1"))
        assert any("`compare.methods`: required but not set" in problem for problem in found)

    def test_a_method_wins_over_what_all_change_and_the_command_line_over_both(self, write: Write) -> None:
        text = COMPARISON.replace("seeds =", 'overrides = ["train.steps=6", "run.threads=3"]\nseeds =')
        recipe = write("compare.toml", text)
        grpo, aipo = (method_settings(load_comparison(recipe), m) for m in load_comparison(recipe).methods)
        assert (grpo.train.steps, aipo.train.steps) == (6, 5)
        assert grpo.run.threads == aipo.run.threads == 3
        forced = load_comparison(recipe, ["train.steps=9"])
        assert {method_settings(forced, method).train.steps for method in forced.methods} == {9}
