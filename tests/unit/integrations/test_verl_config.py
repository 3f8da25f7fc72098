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
from aipo.integrations.verl.plan import Plan
from aipo.integrations.verl.refusals import refuse
from aipo.training.algorithm import objective_settings
from support.policies import run_cli, succeed

PLAIN = ("policy.model=some/model", "algorithm.stripped_copies=false")


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
    plan = Plan.from_table(found["aipo"]["plan"])
    assert plan.objective == objective_settings(settings.algorithm)
    assert (plan.consulting, plan.solo, plan.max_response_tokens) == (4, 4, 2048)


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
        ("policy.lora_rank=8", "policy.lora_rank = 8"),
        ("consult.elicit.share=0.5", "agent-loop processes do not see"),
        ("algorithm.stripped_copies=true", "algorithm.stripped_copies = true"),
        ("algorithm.agent_token_price=0.1", "algorithm.agent_token_price = 0.1"),
        ("algorithm.floor_end=0.5", "algorithm.floor_end"),
        ("rollout.solo_fraction_end=1.0", "rollout.solo_fraction_end"),
        ("rollout.experts_per_prompt=1", "rollout.experts_per_prompt = 1"),
        ("train.dynamic_sampling_rounds=2", "train.dynamic_sampling_rounds"),
        ("task.reward=my_rewards:brevity", "task.reward = {'my_rewards:brevity': 1.0}"),
        ("train.reward=random", "train.reward = 'random'"),
        ("train.minibatches_per_step=3", "train.minibatches_per_step = 3"),
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


def test_a_minibatch_that_the_ranks_cannot_share_is_an_error(tmp_path: Path) -> None:
    more = ("rollout.rollouts_per_prompt=3", "--on", "nodes=2")
    result = run_cli("verl", "config", "recipes/own.toml", *RECIPE, *PLAIN, *more, "--output", tmp_path)
    assert result.exit_code == 2 and "a mini-batch of 24 rollouts" in result.output


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


@pytest.mark.parametrize("cluster", ["one_node", "eight_nodes"])
def test_the_paper_scale_recipe_can_be_run_on_its_clusters(tmp_path: Path, cluster: str) -> None:
    where = f"recipes/verl/{cluster}.toml"
    succeed("verl", "config", "recipes/verl/paper.toml", "--cluster", where, "--output", tmp_path)
    found = yaml.safe_load((tmp_path / "aipo_verl.yaml").read_text())
    assert found["data"]["train_batch_size"] == 256 and found["actor_rollout_ref"]["rollout"]["n"] == 8
    plan = Plan.from_table(found["aipo"]["plan"])
    assert plan.objective.coefficient.kind == "floored"
    assert (plan.objective.surrogate.clip.low, plan.objective.surrogate.clip.high) == (0.2, 0.28)


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
