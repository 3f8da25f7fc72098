"""`aipo doctor`: a table, exit code 1 where the settings need what is missing, the fix of each line."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from support.policies import counting_policy, counting_recipe, random_policy, run_cli, succeed
from support.vllm_twin import Twin


def said(*arguments: str | Path, code: int = 1) -> str:
    result = run_cli("doctor", *arguments)
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return " ".join(result.output.split())


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = {"model": str(counting_policy(tmp_path_factory))}
    return counting_recipe(tmp_path, policy=policy, run={"output": str(tmp_path / "run")})


def test_a_machine_without_a_recipe() -> None:
    output = " ".join(succeed("doctor").output.split())
    for what in (
        "system",
        "versions",
        "devices",
        "free disk",
        "memory",
        "sandbox bubblewrap",
        "sandbox landlock",
    ):
        assert what in output


def test_a_recipe_that_works(recipe: Path, tmp_path: Path) -> None:
    output = said(recipe, code=0)
    for what in ("grading", "gold correct, another answer incorrect", "chat template", "tokens of each tag"):
        assert what in output
    for what in (
        "agent verify",
        "engine",
        "transformers, float32",
        "sampler agrees",
        "consultation",
        "answered",
    ):
        assert what in output
    assert "failed" not in output
    assert not (tmp_path / "run").exists()


def test_through_a_policy_server(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with Twin(counting_policy(tmp_path_factory)) as twin:
        output = said(recipe, "engine.name=vllm", f"engine.urls={twin.url}", code=0)
    assert "vllm, float32" in output and "sampler agrees" in output


def test_through_several_policy_servers(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    policy = counting_policy(tmp_path_factory)
    with Twin(policy) as one, Twin(policy) as other:
        urls = json.dumps([one.url, other.url])
        output = said(recipe, "engine.name=vllm", f"engine.urls={urls}", code=0)
        assert one.completions() and other.completions()
    assert "vllm, float32, 2 servers" in output and "sampler agrees" in output


def test_an_unreachable_policy_server_fails_and_the_rest_is_looked_at(recipe: Path) -> None:
    output = said(recipe, "engine.name=vllm", "engine.urls=http://127.0.0.1:1")
    assert (
        "engine: engine.urls = ['http://127.0.0.1:1']: policy server" in output
        and "cannot be reached" in output
    )
    assert "agent verify" in output and "gold correct" in output


def test_a_dead_agent_fails(recipe: Path) -> None:
    output = said(recipe, "agents.failure_rate=1.0")
    assert "agent verify: agent_error" in output and "aipo agents check" in output


@pytest.mark.parametrize(
    ("task", "code", "said_of_it"),
    [
        ("SAID", 0, "consultation │ ok │ knowledge: asked 'carry?', answered: 'yes'"),
        ("UNSAID", 0, "consultation │ look │ knowledge: asked 'what do I need to know?', empty: empty reply"),
        ("WRONG", 1, "consultation │ failed │ knowledge: asked 'what?', empty: empty reply"),
    ],
)
def test_a_consultation_without_words_is_not_ok(
    recipe: Path, tmp_path_factory: pytest.TempPathFactory, task: str, code: int, said_of_it: str
) -> None:
    more = ["agents.enabled=['knowledge']", "rollout.max_prompt_tokens=200", "consult.consulting_prompt=ask"]
    policy = f"policy.model={random_policy(tmp_path_factory, 'qwen2.5')}"
    assert said_of_it in said(recipe, f"task.name=support.silent_oracle:{task}", policy, *more, code=code)


def test_a_policy_without_a_chat_template_fails(
    recipe: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    policy = Path(shutil.copytree(random_policy(tmp_path_factory, "llama3"), tmp_path / "copy"))
    (policy / "chat_template.jinja").unlink()
    output = said(recipe, f"policy.model={policy}")
    assert "use an instruct model, or set tokenizer.chat_template" in output


def test_tags_of_many_tokens_are_pointed_at_but_do_not_fail(
    recipe: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    output = said(recipe, f"policy.model={random_policy(tmp_path_factory, 'qwen2.5')}", "agents.enabled=[]")
    assert "none: plain RLVR" in output
    assert AutoTokenizer.from_pretrained(random_policy(tmp_path_factory, "qwen2.5")).chat_template


def test_a_disk_without_room_and_a_missing_gpu_fail(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    output = said(recipe, "run.device=cuda")
    assert "run.device = 'cuda', but torch sees cpu" in output and "make room" in output


def test_a_bad_recipe_is_the_usual_error(recipe: Path) -> None:
    assert "engine.name" in said(recipe, "engine.name=sglang", code=2)


def test_what_a_run_and_its_checkpoints_take_is_said(recipe: Path) -> None:
    output = said(recipe, code=0)
    assert "memory of the run" in output and "estimated: update" in output and "checkpoints" in output


def test_a_policy_that_cannot_fit_is_not_even_loaded(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aipo.assembly.memory.free_bytes", lambda device: 1000)
    output = said(recipe)
    assert "It does not fit: take a smaller policy" in output and "loading" not in output
