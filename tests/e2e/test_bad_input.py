"""Bad input to `aipo train` and its siblings: one clear error, exit code 2, and nothing written or spent.

Proves for each: the message names the field, the value and the fix; there is no traceback; run.output does
not exist afterwards, or is as it was.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import normalizers
from transformers import AutoTokenizer

from aipo.config.loader import load_settings
from aipo.config.toml import toml_text
from aipo.training.journal import Journal
from aipo.training.update import Updater
from support.policies import byte_level_tokenizer, counting_recipe, gsm8k_rows, random_policy, run_cli


@pytest.fixture(autouse=True)
def no_update(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which an update is made."""
    updates: list[object] = []
    monkeypatch.setattr(Updater, "apply", lambda *arguments: updates.append(arguments) or {})
    yield
    assert not updates


@pytest.fixture
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_policy(tmp_path_factory, "qwen2.5")


@pytest.fixture
def policy_copy(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A policy folder that the test may spoil."""
    return Path(shutil.copytree(random_policy(tmp_path_factory, "llama3"), tmp_path / "policy"))


@pytest.fixture
def recipe(tmp_path: Path, qwen: Path) -> Path:
    """Plain RLVR on a file, which works as it stands."""
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in gsm8k_rows(40)))
    task = {"name": "jsonl", "train_file": str(problems), "problem_field": "question", "answer_after": "####"}
    table = {
        "run": {"output": str(tmp_path / "run")},
        "policy": {"model": str(qwen)},
        "task": task,
        "agents": {"enabled": []},
        "rollout": {"rollouts_per_prompt": 4, "max_prompt_tokens": 1024, "max_response_tokens": 16},
        "train": {"steps": 1, "prompts_per_step": 2, "minibatches_per_step": 1},
    }
    path = tmp_path / "own.toml"
    path.write_text(toml_text(table))
    return path


def refused(recipe: Path, *overrides: str, verb: str = "train") -> str:
    """Run a verb that must be refused; return its one error with white space folded."""
    result = run_cli(verb, recipe, *overrides)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error:") and result.output.count("error:") == 1, result.output
    assert not (recipe.parent / "run").exists()
    return " ".join(result.output.split())


def assert_says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"


def spoil(path: Path, line: int, **changes: object) -> None:
    """Change fields of one row; a field set to None is taken out."""
    lines = path.read_text().splitlines()
    row = json.loads(lines[line - 1]) | changes
    lines[line - 1] = json.dumps({name: value for name, value in row.items() if value is not None})
    path.write_text("\n".join(lines) + "\n")


class TestRecipes:
    @pytest.mark.parametrize("verb", ["train", "evaluate", "rollout", "warmstart", "compare"])
    def test_a_missing_recipe_is_named_with_those_nearby(self, recipe: Path, verb: str) -> None:
        message = refused(recipe.parent / "owm.toml", verb=verb)
        assert_says(message, "owm.toml: no such file", "own.toml")

    def test_a_malformed_recipe_is_named_with_the_line(self, recipe: Path) -> None:
        recipe.write_text("[train]\nsteps = = 3\n")
        assert_says(refused(recipe), "own.toml:2: malformed TOML")

    def test_an_unknown_key_is_refused_with_the_nearest(self, recipe: Path) -> None:
        message = refused(recipe, "train.learning_rat=1e-4")
        assert_says(message, "`train.learning_rat`: unknown key", "did you mean `train.learning_rate`?")

    def test_a_value_out_of_bounds_is_refused_with_the_bound(self, recipe: Path) -> None:
        assert_says(refused(recipe, "train.steps=0"), "`train.steps` = 0", "greater than or equal to 1")

    def test_an_unknown_agent_is_refused_with_those_there_are(self, recipe: Path) -> None:
        message = refused(recipe, 'agents.enabled=["verify", "oracel"]')
        assert_says(message, "`agents.enabled` = 'oracel'", "choose one of verify, knowledge, reasoning")

    def test_several_problems_are_one_message(self, recipe: Path) -> None:
        message = refused(recipe, "train.step=1", "rollout.temperature=0")
        assert_says(message, "2 problems", "`train.step`: unknown key", "`rollout.temperature` = 0")


class TestProblemFiles:
    def test_a_file_for_a_task_that_reads_none_is_refused(self, recipe: Path) -> None:
        message = refused(recipe, "task.name=leg_counting", "agents.enabled=[]")
        assert_says(message, "task.train_file", "makes its own problems", "task.name = 'jsonl'")

    def test_a_missing_column_is_named_with_those_there_are(self, recipe: Path) -> None:
        message = refused(recipe, "task.problem_field=problem")
        assert_says(message, "problems.jsonl:1: no field 'problem'", "'question', 'answer'")
        assert_says(message, "set task.problem_field")

    def test_a_column_missing_in_one_row_is_named_with_its_line(self, recipe: Path) -> None:
        spoil(recipe.parent / "problems.jsonl", 7, answer=None)
        assert_says(refused(recipe), "problems.jsonl:7: no field 'answer'", "set task.answer_field")

    def test_an_empty_answer_is_named_with_its_line(self, recipe: Path) -> None:
        spoil(recipe.parent / "problems.jsonl", 5, answer="so\n####  ")
        assert_says(refused(recipe), "problems.jsonl:5: field 'answer'", "has nothing after '####'")

    def test_a_missing_file_is_named(self, recipe: Path) -> None:
        assert_says(refused(recipe, "task.train_file=nowhere.jsonl"), "nowhere.jsonl: cannot read the file")

    def test_a_task_without_files_is_refused(self, tmp_path: Path) -> None:
        recipe = tmp_path / "empty.toml"
        recipe.write_text('[task]\nname = "jsonl"\n[policy]\nmodel = "x"')
        assert_says(refused(recipe), "needs task.train_file or task.test_file")

    def test_a_split_without_a_file_is_refused_where_it_is_needed(self, recipe: Path) -> None:
        message = refused(recipe, "evaluate.split=test", verb="evaluate")
        assert_says(message, "no test problems", "set task.test_file")

    def test_an_evaluation_that_cannot_be_made_is_refused_before_training(self, recipe: Path) -> None:
        message = refused(recipe, "evaluate.split=test", "evaluate.at_steps=[1]")
        assert_says(message, "no test problems", "set task.test_file")


class TestPolicies:
    def test_no_model_is_refused(self, recipe: Path) -> None:
        assert_says(refused(recipe, 'policy.model=""'), "policy.model is empty", "aipo warmstart")

    def test_a_missing_model_folder_is_named(self, recipe: Path) -> None:
        message = refused(recipe, "policy.model=./models/none")
        assert_says(message, "policy.model = './models/none' has no config.json")

    def test_a_hub_id_that_cannot_be_loaded_is_named(
        self, recipe: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        message = refused(recipe, "policy.model=nobody/nothing")
        assert_says(message, "policy.model = 'nobody/nothing' cannot be loaded")

    def test_spoilt_weights_are_named(self, recipe: Path, policy_copy: Path) -> None:
        (policy_copy / "model.safetensors").write_bytes(b"torn")
        message = refused(recipe, f"policy.model={policy_copy}")
        assert_says(message, f"policy.model = '{policy_copy}' cannot be loaded")

    def test_a_tokenizer_without_chat_template_is_refused(self, recipe: Path, policy_copy: Path) -> None:
        (policy_copy / "chat_template.jinja").unlink()
        message = refused(recipe, f"policy.model={policy_copy}")
        assert_says(message, f"policy.model = '{policy_copy}'", "no chat template", "instruct model")

    def test_tags_that_do_not_come_back_are_refused(self, recipe: Path, policy_copy: Path) -> None:
        tokenizer = byte_level_tokenizer(["lower case only"])
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.save_pretrained(policy_copy)
        assert AutoTokenizer.from_pretrained(policy_copy).decode(tokenizer.encode("<Help>")) == "<help>"
        verify = (
            'agents.enabled=["verify"]',
            "agents.backend=dead",
            "consult.tags.verify=Help",
            "consult.max_feedback_tokens=2",
        )
        message = refused(recipe, f"policy.model={policy_copy}", *verify)
        assert_says(message, "tag <Help> comes back from the tokenizer as '<help>'", "consult.tags")


class TestLimitsAndAgents:
    def test_limits_without_room_for_feedback_are_refused(self, tmp_path: Path, qwen: Path) -> None:
        recipe = counting_recipe(tmp_path, policy={"model": str(qwen)}, run={"output": str(tmp_path / "run")})
        message = refused(recipe, "consult.max_feedback_tokens=64")
        assert_says(message, "rollout.max_response_tokens = 64", "consult.max_feedback_tokens = 64", "lower")

    def test_agents_that_nothing_answers_for_are_refused(self, recipe: Path) -> None:
        room = ["consult.max_feedback_tokens=8", "rollout.max_response_tokens=64"]
        message = refused(recipe, 'agents.enabled=["verify"]', "agents.backend=oracle", *room)
        assert_says(message, "task 'jsonl' has no oracle", "agents.enabled = []")
        message = refused(recipe, 'agents.enabled=["verify"]', *room)
        assert_says(message, "agents.verify: backend = 'remote' needs a model")

    def test_experts_that_nobody_writes_are_refused(self, recipe: Path) -> None:
        message = refused(recipe, "rollout.experts_per_prompt=1")
        assert_says(message, "rollout.experts_per_prompt", "has no solution", "task.solution_field")

    def test_groups_of_nothing_are_refused(self, recipe: Path) -> None:
        message = refused(recipe, "rollout.rollouts_per_prompt=0")
        assert_says(message, "rollout.rollouts_per_prompt", "rollout.experts_per_prompt")

    def test_copies_without_requests_need_tags_that_are_one_token(self, recipe: Path) -> None:
        message = refused(recipe, "algorithm.copies_without_requests=true")
        assert_says(message, "algorithm.copies_without_requests", "several tokens", "set it to false")

    def test_two_tags_of_one_name_are_refused(self, recipe: Path) -> None:
        both = 'agents.enabled=["verify", "knowledge"]'
        message = refused(recipe, both, "agents.backend=dead", "consult.tags.verify=knowledge")
        assert_says(message, "consult.tags.", "'knowledge'", "give each its own name")


class TestStrata:
    def test_an_unknown_stratum_is_refused_with_those_there_are(self, recipe: Path) -> None:
        message = refused(recipe, "train.stratum_mix={hard=1.0}")
        assert_says(message, "train.stratum_mix", "no stratum ['hard']", "it has ['all']")

    def test_shares_that_do_not_add_up_are_refused(self, recipe: Path) -> None:
        message = refused(recipe, "train.stratum_mix={all=0.7}")
        assert_says(message, "train.stratum_mix", "adds up to 0.7", "make it 1")


class TestOutputFolders:
    def test_another_run_is_left_alone_and_what_differs_is_shown(self, recipe: Path, tmp_path: Path) -> None:
        mine = tmp_path / "mine"
        Journal(load_settings(recipe, [f"run.output={mine}"]))  # what an interrupt in its first step leaves
        before = {path: path.read_bytes() for path in mine.rglob("*")}
        message = refused(recipe, f"run.output={mine}", "train.learning_rate=5e-5")
        assert_says(message, f"run.output = '{mine}' holds a run with other settings")
        assert_says(message, "train.learning_rate: 1e-06 -> 5e-05", "choose another folder")
        assert {path: path.read_bytes() for path in mine.rglob("*")} == before

    def test_a_folder_with_foreign_files_is_left_alone(self, recipe: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter1.tex").write_text("once")
        message = refused(recipe, f"run.output={tmp_path / 'thesis'}")
        assert_says(message, f"run.output = '{tmp_path / 'thesis'}' is not empty and not a run")
        assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]

    def test_a_file_in_its_place_is_refused(self, recipe: Path, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("x")
        message = refused(recipe, f"run.output={tmp_path / 'notes.txt'}")
        assert_says(message, f"run.output = '{tmp_path / 'notes.txt'}'")
