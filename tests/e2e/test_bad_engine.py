"""A policy engine that cannot serve a recipe: one clear error with the fix, exit code 2, nothing spent."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.policies import counting_recipe, random_policy, run_cli
from support.vllm_twin import PATHS, Twin


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_policy(tmp_path_factory, "qwen2.5")


@pytest.fixture
def twin(policy: Path) -> Iterator[Twin]:
    with Twin(policy) as twin:
        yield twin


@pytest.fixture
def recipe(tmp_path: Path, policy: Path, twin: Twin) -> Path:
    return counting_recipe(
        tmp_path,
        policy={"model": str(policy)},
        engine={"name": "vllm", "urls": [twin.url]},
        run={"output": str(tmp_path / "run")},
        rollout={"max_prompt_tokens": 400},
    )


def refused(recipe: Path, *overrides: str) -> str:
    result = run_cli("train", recipe, *overrides)
    assert result.exit_code == 2, f"{result.output}\n{result.exception!r}"
    assert result.stderr.startswith("error:") and "Traceback" not in result.output
    run = recipe.parent / "run"
    assert not run.exists() or all(path.name.startswith("policy-server") for path in run.iterdir())
    return " ".join(result.output.split())


def test_an_unknown_engine_is_named_with_those_that_exist(recipe: Path) -> None:
    said = refused(recipe, "engine.name=sglang")
    assert "engine.name = 'sglang' is not known" in said and "choose one of transformers, vllm" in said


def test_an_address_where_nothing_listens(recipe: Path) -> None:
    said = refused(recipe, "engine.urls=http://127.0.0.1:1")
    assert (
        "engine.urls = ['http://127.0.0.1:1']" in said
        and "is it running" in said
        and "docs/engines.md" in said
    )


def test_a_server_that_is_no_vllm(recipe: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin, "_simple", lambda path, body: (404, {"detail": "Not Found"}))
    assert "/v1/models answered 404: Not Found" in refused(recipe)


def test_a_server_without_its_developer_endpoints(
    recipe: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plain(path: str, body: object) -> tuple[int, object]:
        return (404, {"detail": "Not Found"}) if path == "/server_info" else original(path, body)

    original = twin._simple
    monkeypatch.setattr(twin, "_simple", plain)
    assert "VLLM_SERVER_DEV_MODE=1" in refused(recipe)


def test_a_version_that_lacks_what_is_needed(
    recipe: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM before it had stamps; it is refused at the start, with a version that has them."""

    def older(path: str, body: object) -> tuple[int, object]:
        if path == "/openapi.json":
            return 200, {"paths": dict.fromkeys(p for p in PATHS if "weight_" not in p)}
        return (200, {"version": "0.24.0"}) if path == "/version" else original(path, body)

    original = twin._simple
    monkeypatch.setattr(twin, "_simple", older)
    said = refused(recipe)
    assert "is vLLM 0.24.0, which lacks /update_weight_version, /weight_info; take 0.32.0" in said


def test_a_server_of_another_tokenizer(recipe: Path, twin: Twin) -> None:
    twin.tokenizer = AutoTokenizer.from_pretrained(twin.policy)
    twin.tokenizer.add_tokens(["13?"])
    said = refused(recipe)
    assert "whose tokenizer is not policy.model's" in said and f"set policy.model = '{twin.policy}'" in said


def test_a_server_of_another_model_with_the_same_tokenizer(
    recipe: Path, tmp_path: Path, policy: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    model.config.num_key_value_heads = 4
    other = type(model)(model.config)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(policy).save_pretrained(tmp_path / "other")
    said = refused(recipe, f"policy.model={tmp_path / 'other'}")
    assert "with num_key_value_heads = 2, policy.model has 4" in said


def test_a_server_that_does_not_take_the_weights_is_seen_by_its_log_probabilities(
    recipe: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it did; what it samples is another policy's."""
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.mul_(1.5)
    monkeypatch.setattr(twin.model, "load_state_dict", lambda *_, **__: None)
    said = refused(recipe)
    assert "self-test: the sampler's log-probabilities differ" in said
    assert "Does the engine serve policy.model?" in said


def test_a_server_with_too_little_room(recipe: Path, policy: Path) -> None:
    with Twin(policy, max_tokens=100) as small:
        said = refused(recipe, f"engine.urls={small.url}")
    assert "start it with --max-model-len 464" in said


def test_log_probabilities_of_another_temperature(recipe: Path) -> None:
    assert "--logprobs-mode processed_logprobs" in refused(recipe, "rollout.temperature=0.7")


def test_a_key_that_is_not_in_the_environment(recipe: Path) -> None:
    assert "engine.api_key_env = 'AIPO_NO_SUCH_KEY'" in refused(recipe, "engine.api_key_env=AIPO_NO_SUCH_KEY")


def test_a_server_that_does_not_start_is_refused_with_the_end_of_its_log(recipe: Path) -> None:
    command = f'engine.command=["{sys.executable}", "-c", "import sys; sys.exit(\'no such GPU\')"]'
    said = refused(recipe, "engine.start=true", command)
    assert (
        "engine.start: the policy server ended with status 1 while it started" in said
        and "no such GPU" in said
    )


def test_a_folder_of_another_run_is_refused_before_a_server_is_started(recipe: Path) -> None:
    run = recipe.parent / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("mine")
    result = run_cli("train", recipe, "engine.start=true", 'engine.command=["false"]')
    assert result.exit_code == 2 and "is not empty and not a run" in result.output
    assert [path.name for path in run.iterdir()] == ["thesis.txt"]
