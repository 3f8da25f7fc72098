"""`aipo verl config` writes what a recipe says, or refuses; `aipo data export` writes rows for verl."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from aipo.config.cluster import ClusterSettings
from aipo.config.layers import Layers
from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.integrations.verl.offered import REFUSED, WITHOUT_MEANING, table_of
from aipo.integrations.verl.problems import problem_of
from aipo.integrations.verl.refusals import refuse
from aipo.tasks.base import Problem
from aipo.training.problems import ProblemBatches
from support.policies import run_cli, succeed

PLAIN = ("policy.model=some/model",)


def written(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    succeed("verl", "config", "recipes/own.toml", *RECIPE, *PLAIN, *arguments, "--output", tmp_path)
    found: dict[str, Any] = yaml.safe_load((tmp_path / "aipo_verl.yaml").read_text())
    return found


RECIPE = (
    "task.name=dapo_math_17k",
    "agents.enabled=['verify', 'knowledge']",
    "agents.backend=remote",
    "agents.base_url=http://agents:8000/v1",
    "agents.model=m",
    "train.prompts_per_step=16",
    "train.minibatches_per_step=2",
)
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_recipe_stands_in_it_whole_and_its_algorithm_resolved(tmp_path: Path) -> None:
    found = written(tmp_path, "algorithm.name=cispo", "algorithm.coefficient=shaped", "algorithm.shape=0.2")
    layers = Layers(source="test")
    layers.add_table(Settings, found["aipo"]["recipe"], "test")
    settings = layers.validate(Settings)
    more = ["algorithm.name=cispo", "algorithm.coefficient=shaped", "algorithm.shape=0.2"]
    assert settings == load_settings(Path("recipes/own.toml"), [*RECIPE, *PLAIN, *more])
    assert found["algorithm"]["adv_estimator"] == "aipo_group_normalised"


def test_what_is_written_is_what_the_plugin_takes(tmp_path: Path) -> None:
    found = written(tmp_path)
    defaults = {"response_length": found["data"]["max_response_length"], "multi_turn": {"enable": False}}
    found["actor_rollout_ref"]["rollout"] |= defaults
    refuse(found)
    assert found["actor_rollout_ref"]["actor"]["ppo_mini_batch_size"] == 8
    assert (tmp_path / "run.sh").stat().st_mode & 0o100


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("policy.tf32=true", "policy.tf32 = true"),
        ("consult.format=tools", "consult.format = 'tools'"),
        ("consult.elicit.share=0.5", "agent-loop processes do not see"),
        ("train.learning_rate_schedule=linear", "train.learning_rate_schedule = 'linear'"),
        ("train.source_gradients_every_steps=5", "train.source_gradients_every_steps = 5"),
        ("guards.max_agent_cost=2", "guards.max_agent_cost = 2"),
        ("rollout.max_response_tokens=40000", "tokens_per_gpu"),
        ("agents.backend=local", "agents.verify: backend = 'local'"),
        ("policy.model=", "policy.model = ''"),
    ],
)
def test_what_verl_would_not_do_is_an_error_that_names_the_field(
    tmp_path: Path, change: str, said: str
) -> None:
    arguments = ("recipes/own.toml", *RECIPE, *PLAIN, change, "--output", tmp_path / "none")
    result = run_cli("verl", "config", *arguments)
    assert result.exit_code == 2 and said in result.output.replace("\n", " ")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("algorithm.kl_weight=0.1", "algorithm.kl_estimator=exact"), "algorithm.kl_estimator = 'exact'"),
        (
            ("algorithm.kl_weight=0.1", "rollout.rollouts_per_prompt=0", "rollout.experts_per_prompt=1"),
            "rollout.rollouts_per_prompt = 0",
        ),
        (("policy.lora_rank=8", "policy.precision=bfloat16"), "policy.precision = 'bfloat16'"),
        (("policy.lora_rank=8", "policy.lora_alpha=2.5"), "policy.lora_alpha = 2.5"),
    ],
)
def test_what_does_not_go_together_on_verl_is_an_error(
    tmp_path: Path, changes: tuple[str, ...], said: str
) -> None:
    result = run_cli(
        "verl", "config", "recipes/own.toml", *RECIPE, *PLAIN, *changes, "--output", tmp_path / "none"
    )
    assert result.exit_code == 2 and said in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    "change",
    [
        "algorithm.verified_copies=true",
        "algorithm.agent_token_price=0.001",
        "algorithm.floor_end=0.5",
        "algorithm.feedback_weight_end=0.5",
        "algorithm.entropy_weight=0.01",
        "algorithm.kl_weight=0.1",
        "rollout.solo_fraction_end=1.0",
        "rollout.experts_per_prompt=1",
        "train.dynamic_sampling_rounds=2",
        "train.minibatches_per_step=3",
        "train.reward=random",
        "task.reward=my_rewards:brevity",
        "train.optimizer=adamw8bit",
        "policy.lora_rank=8",
    ],
)
def test_the_whole_method_is_taken(tmp_path: Path, change: str) -> None:
    found = written(tmp_path, change)
    found["actor_rollout_ref"]["rollout"] |= {
        "response_length": found["data"]["max_response_length"],
        "multi_turn": {"enable": False},
    }
    refuse(found)


def test_adapters_are_verls_and_its_servers_get_them_merged(tmp_path: Path) -> None:
    change = ("policy.lora_rank=8", "policy.lora_targets=['q_proj']", "train.optimizer=adamw8bit")
    found = written(tmp_path, *change)["actor_rollout_ref"]
    model = found["model"]
    assert (model["lora_rank"], model["lora_alpha"], model["lora"]) == (8, 32, {"merge": True})
    assert model["target_modules"] == ["q_proj"]
    assert found["actor"]["optim"]["optimizer_impl"] == "bitsandbytes.optim"


def test_supervised_fine_tuning_has_an_expert_for_its_only_row(tmp_path: Path) -> None:
    found = written(tmp_path, "rollout.rollouts_per_prompt=0", "rollout.experts_per_prompt=1")
    assert found["actor_rollout_ref"]["rollout"]["n"] == 1
    assert found["algorithm"]["rollout_correction"] is None


def leaves(section: type[Any], before: str = "") -> list[str]:
    """Return the names of all settings."""
    names = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            names += leaves(inner, f"{before}{name}.")
        else:
            names.append(before + name)
    return names


def test_every_setting_is_offered_or_refused_or_said_to_mean_nothing() -> None:
    """A new setting fails here until somebody has said what it means on verl."""
    names = leaves(Settings)
    assert len(names) > 150
    tables = {name: table_of(name) for name in names}
    used = {key for key in (*REFUSED, *WITHOUT_MEANING) for name in names if name.startswith(key)}
    assert used == {*REFUSED, *WITHOUT_MEANING}  # no entry about a setting that is gone
    text = (ROOT / "docs" / "verl.md").read_text()
    said = [key for key, table in tables.items() if table != "offered"]
    assert said and [key for key in (*REFUSED, *WITHOUT_MEANING) if f"`{key.rstrip('.')}`" not in text] == []
    with pytest.raises(KeyError):
        table_of("train.invented")


def test_sequence_parallelism_needs_flash_attention(tmp_path: Path) -> None:
    more = ("--on", "sequence_parallel=2", "--output", tmp_path / "none")
    result = run_cli("verl", "config", "recipes/own.toml", *RECIPE, *PLAIN, *more)
    assert result.exit_code == 2 and "attention = 'sdpa'" in result.output.replace("\n", " ")
    found = written(tmp_path, "--on", "sequence_parallel=2", "--on", "attention=flash_attention_2")
    model = found["actor_rollout_ref"]["model"]
    assert model["override_config"] == {"attn_implementation": "flash_attention_2"}
    assert model["use_remove_padding"] is True


def test_an_unknown_key_of_the_cluster_is_an_error(tmp_path: Path) -> None:
    arguments = (*RECIPE, *PLAIN, "--on", "gpus=8", "--output", tmp_path)
    result = run_cli("verl", "config", "recipes/own.toml", *arguments)
    assert result.exit_code == 2 and "gpus" in result.output


def _problems(tmp_path: Path) -> list[str]:
    rows = "\n".join(f'{{"problem": "What is {i} + 1? <verify>", "answer": "{i + 1}"}}' for i in range(40))
    path = tmp_path / "problems.jsonl"
    path.write_text(rows)
    return ["recipes/own.toml", "task.name=jsonl", f"task.train_file={path}", "agents.enabled=['verify']"]


def test_a_row_holds_the_problem_and_its_loop(tmp_path: Path) -> None:
    succeed("data", "export", *_problems(tmp_path), "--output", tmp_path, "--with-agents")
    train = pq.read_table(tmp_path / "train.parquet").to_pylist()
    held_out = pq.read_table(tmp_path / "validation.parquet").to_pylist()
    assert {row["agent_name"] for row in train} == {"aipo"}
    assert {row["agent_name"] for row in held_out} == {"aipo_solo", "aipo_agents"}
    row = train[0]
    assert row["extra_info"]["problem"]["gold"] == row["reward_model"]["ground_truth"]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert "<verify>" in row["prompt"][0]["content"]  # offered by the system prompt
    assert "<verify>" not in row["prompt"][1]["content"]  # a problem's own tag is made inert
    solo = next(row for row in held_out if row["agent_name"] == "aipo_solo")
    assert "verify" not in solo["prompt"][0]["content"]
    texts = {row["extra_info"]["problem"]["text"] for row in train}
    assert texts.isdisjoint(row["extra_info"]["problem"]["text"] for row in held_out)


def test_the_rows_are_the_problems_of_the_steps_of_aipo_train(tmp_path: Path) -> None:
    changes = [
        "train.steps=3",
        "train.prompts_per_step=4",
        "train.dynamic_sampling_rounds=1",
        "run.seed=5",
    ]
    succeed("data", "export", *_problems(tmp_path), *changes, "--output", tmp_path)
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert [row["extra_info"]["index"] for row in rows] == list(range(3 * 2 * 4))
    arguments = _problems(tmp_path)
    settings = load_settings(Path(arguments[0]), [*arguments[1:], *changes])
    from aipo.assembly.parts import build_task
    from aipo.tasks.base import Split

    batches = ProblemBatches(build_task(settings.task, settings.sandbox).problems(Split.TRAIN), settings)
    wanted = [problem.id for number in range(1, 7) for problem in batches.batch(number)]
    assert [row["extra_info"]["problem"]["id"] for row in rows] == wanted


def test_a_problem_survives_its_row() -> None:
    from aipo.integrations.verl.problems import table_of_problem

    problem = Problem(
        id="p",
        text="?",
        gold="!",
        solution="so",
        turns=(("system", "be kind"), ("user", "?")),
        tools="[]",
        alternatives=("1.0", "1"),
        row={"weight": 2, "tags": ["a"]},
    )
    again = problem_of({"extra_info": {"problem": table_of_problem(problem, with_row=True)}})
    assert again == problem and again.row == problem.row
    assert problem_of({"extra_info": {"problem": table_of_problem(problem, with_row=False)}}).row == {}


@pytest.mark.parametrize("cluster", ["one_node", "eight_nodes"])
def test_the_paper_scale_recipe_can_be_run_on_its_clusters(tmp_path: Path, cluster: str) -> None:
    where = f"recipes/verl/{cluster}.toml"
    succeed("verl", "config", "recipes/verl/paper.toml", "--cluster", where, "--output", tmp_path)
    found = yaml.safe_load((tmp_path / "aipo_verl.yaml").read_text())
    assert found["data"]["train_batch_size"] == 256 and found["actor_rollout_ref"]["rollout"]["n"] == 8
    algorithm = found["aipo"]["recipe"]["algorithm"]
    assert algorithm["coefficient"] == "floored" and algorithm["stripped_copies"] is True
    actor = found["actor_rollout_ref"]["actor"]
    assert (actor["clip_ratio_low"], actor["clip_ratio_high"]) == (0.2, 0.28)


def test_every_field_of_a_cluster_is_documented() -> None:
    text = (ROOT / "docs" / "verl.md").read_text()
    assert [name for name in ClusterSettings.model_fields if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("precision", "weights", "products"),
    [
        ("auto", "float32", "bfloat16"),
        ("bf16-mixed", "float32", "bfloat16"),
        ("float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_the_precision_is_that_of_actor_and_server(
    precision: str, weights: str, products: str, tmp_path: Path
) -> None:
    found = written(tmp_path, f"policy.precision={precision}")["actor_rollout_ref"]
    actor = found["actor"]["fsdp_config"]
    assert (actor["model_dtype"], actor["dtype"], found["rollout"]["dtype"]) == (weights, products, products)
