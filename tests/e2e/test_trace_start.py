"""`aipo warmstart` on a model of one's own: traces through the protocol, fine-tuning, what is written.

Proves: a trace holds a real agent's answer, marked as FEEDBACK; only targets are learnt; what is written is
where the recipe looks for it; a start that was interrupted ends with the weights of one that was not; every
mistake is one error with the fix.
"""

import asyncio
import json
import os
import re
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from aipo.assembly.parts import Parts, assemble
from aipo.assembly.trace_sources import source_of
from aipo.assembly.traces import Kept, TraceMaker, Traces
from aipo.config.layers import load_layers
from aipo.config.toml import toml_text
from aipo.config.warmstart import TraceSettings
from aipo.core.types import Source
from aipo.tasks.registry import task_spec
from aipo.training.checkpoint import Checkpoints
from aipo.training.log_probs import PolicyForward
from aipo.training.supervised import Supervised, SupervisedSettings, mean_loss
from support.policies import gsm8k_rows, random_policy, run_cli, succeed

SMOLLM2 = os.environ.get("AIPO_SMOLLM2", "")
POLICY_ONLY = frozenset({Source.POLICY})


@pytest.fixture
def recipe(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = {
        "run": {"output": str(tmp_path / "run"), "threads": 1},
        "policy": {"model": str(tmp_path / "start" / "policy")},
        "task": {"name": "elements", "options": {"measured": "smollm2"}},
        "agents": {"enabled": ["knowledge"], "backend": "oracle"},
        "consult": {
            "max_consultations": 1,
            "max_feedback_tokens": 40,
            "consulting_prompt": "a",
            "solo_prompt": "b",
        },
        "rollout": {"rollouts_per_prompt": 2, "max_prompt_tokens": 400, "max_response_tokens": 120},
        "train": {"steps": 1, "prompts_per_step": 1, "minibatches_per_step": 1},
        "warmstart": {
            "model": str(random_policy(tmp_path_factory, "qwen2.5")),
            "solo_strata": ["easy"],
            "consulting_strata": ["other"],
            "examples": 24,
            "held_out": 8,
            "learning_rate": 3e-3,
            "check_problems": 1,
            "check_samples": 1,
        },
    }
    path = tmp_path / "start.toml"
    path.write_text(toml_text(table))
    return path


def traces(recipe: Path, *overrides: str) -> tuple[Parts, Traces]:
    settings = load_layers(TraceSettings, recipe, overrides)
    start = settings.policy.model_copy(update={"model": settings.warmstart.model})
    with closing(assemble(settings.model_copy(update={"policy": start}))) as parts:
        entry = source_of(settings.warmstart.source)
        source = entry, entry.make(settings)
        task, kept = task_spec(settings.task.name), Kept(None, settings)
        return parts, asyncio.run(TraceMaker(settings, task, parts, source, kept, print).make())


def test_a_trace_is_what_a_run_would_have_recorded(recipe: Path) -> None:
    parts, made = traces(recipe)
    assert len(made.learnt) == 24 and len(made.held_out) == 8 and not made.notes
    text = parts.sampler.consult.codec.text
    consulting = [stream for stream in made.learnt if stream.count(Source.FEEDBACK)]
    assert len(consulting) == 12
    for stream in consulting:
        _, asked, told, rest = stream.segments
        assert asked.source is rest.source is Source.POLICY and told.source is Source.FEEDBACK
        element = text(asked.ids).removeprefix("<knowledge>atomic number of ").removesuffix("</knowledge>")
        assert text(told.ids).startswith(f"<feedback>{element.capitalize()} has atomic number ")
        assert rest.ids[-1] == parts.tokenizer.eos_token_id
    prompts = {stream.segments[0].ids for stream in made.learnt}
    assert not prompts & {stream.segments[0].ids for stream in made.held_out}


@pytest.mark.skipif(not SMOLLM2, reason="AIPO_SMOLLM2 names no folder of `aipo models get smollm2`")
def test_a_trace_of_smollm2_reads_as_the_packaged_recipe_says(recipe: Path) -> None:
    own = [f"warmstart.model={SMOLLM2}", "warmstart.examples=2", "warmstart.held_out=0"]
    parts, made = traces(Path("recipes/smollm2.toml").resolve(), *own)
    stream = next(s for s in made.learnt if s.count(Source.FEEDBACK))
    text = parts.sampler.consult.codec.text(stream.ids[stream.prompt_length :])
    assert re.fullmatch(
        r"<knowledge>atomic number of ([a-z]+)</knowledge><feedback>[A-Z][a-z]+ has atomic number (\d+)\."
        r"</feedback> \2 \+ \d+ = \d+\.<\|im_end\|>",
        text,
    )


def test_any_solution_is_consulted_about_by_an_agent_of_ones_own(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in gsm8k_rows(12)))
    own = [
        "task.name=jsonl",
        "task.options={}",
        f"task.train_file={file}",
        "task.problem_field=question",
        "task.answer_field=answer",
        'task.answer_after="####"',
        "agents.backend=support.critic:LastWords",
        "warmstart.solo_strata=[]",
        "warmstart.consulting_strata=[]",
        "rollout.max_prompt_tokens=1000",
        "rollout.max_response_tokens=1500",
    ]
    parts, made = traces(recipe, *own, "task.solution_field=answer", "warmstart.examples=8")
    asked = [s for s in made.learnt if s.count(Source.FEEDBACK)]
    assert len(asked) == 4
    assert "<knowledge>what do I need to know?</knowledge><feedback>" in parts.sampler.consult.codec.text(
        asked[0].ids
    )
    assert "traces correct" in made.notes[-1]  # GSM8K's solutions have no box
    with pytest.raises(ValueError, match=r"no solution.*task\.solution_field"):
        traces(recipe, *own)


def test_the_loss_is_of_the_targets_alone(recipe: Path) -> None:
    parts, made = traces(recipe)
    forward = PolicyForward(parts.model)
    stream = next(s for s in made.learnt if s.count(Source.FEEDBACK))
    log_p, _ = forward(torch.tensor([stream.ids]), 1.0)
    for targets in (POLICY_ONLY, frozenset({Source.POLICY, Source.FEEDBACK})):
        places = [i for i, source in enumerate(stream.sources) if source in targets]
        expected = -float(log_p[0, places].detach().mean())
        assert mean_loss(forward, [stream], targets, 1000) == pytest.approx(expected, rel=1e-5)
    whole = mean_loss(forward, made.learnt, POLICY_ONLY, 10_000)
    assert mean_loss(forward, made.learnt, POLICY_ONLY, 1) == pytest.approx(whole, rel=1e-5)


def test_a_start_that_was_interrupted_ends_with_the_weights_of_one_that_was_not(
    recipe: Path, tmp_path: Path
) -> None:
    def trained(folder: Path, end_at: int) -> tuple[Parts, int]:
        parts, made = traces(recipe)
        how = SupervisedSettings(
            targets=POLICY_ONLY,
            epochs=2,
            sequences_per_step=8,
            learning_rate=3e-3,
            microbatch_tokens=1000,
            max_grad_norm=1.0,
            checkpoint_every_s=1000.0,
            seed=0,
        )
        trainer = Supervised(PolicyForward(parts.model), made.learnt, how, Checkpoints(folder, 1))
        first = trainer.step

        def progress(done: int, steps: int, loss: float, elapsed_s: float) -> None:
            if trainer.step == end_at:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            trainer.run(progress)
        return parts, first

    whole, _ = trained(tmp_path / "a", end_at=0)
    trained(tmp_path / "b", end_at=4)
    again, first = trained(tmp_path / "b", end_at=0)
    assert first == 4
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_it_is_written_where_the_run_looks_for_it_and_measured_before_and_after(
    recipe: Path, tmp_path: Path
) -> None:
    said = run_cli("train", recipe)
    assert said.exit_code == 2 and "aipo warmstart" in said.output
    output = succeed("warmstart", recipe).output
    assert "consulting rollouts that consult" in output and "correct solo, hard" in output
    record = json.loads((tmp_path / "start" / "warmstart.json").read_text())
    assert record["after"]["held-out loss"] < record["before"]["held-out loss"] - 0.3
    assert record["steps"] == 3
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "start" / "policy").config.model_type == "qwen2"
    assert not (tmp_path / "start" / "warmstart-checkpoints").exists()
    assert "there already" in succeed("warmstart", recipe).output
    changed = run_cli("warmstart", recipe, "warmstart.examples=16")
    assert changed.exit_code == 2 and "warmstart.examples: 24 -> 16" in changed.output
    succeed("train", recipe)


def test_adapters_are_trained_and_merged_into_what_is_written(recipe: Path, tmp_path: Path) -> None:
    few = ["warmstart.examples=8", "warmstart.held_out=0", "warmstart.check_problems=0"]
    output = succeed("warmstart", recipe, "policy.lora_rank=4", *few).output
    assert "before" in output and "held-out" not in output
    settings = load_layers(TraceSettings, recipe)
    start = AutoModelForCausalLM.from_pretrained(settings.warmstart.model).state_dict()
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "start" / "policy").state_dict()
    assert start.keys() == made.keys()
    changed = {name for name in start if not torch.equal(start[name], made[name])}
    assert changed and not any("embed" in name or "norm" in name for name in changed)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('warmstart.model=""', "warmstart.model is empty; name the pretrained model"),
        ('warmstart.solo_strata=["eazy"]', "its strata are easy, hard, other"),
        ("agents.enabled=[]", "agents.enabled = []: a trace that consults needs an agent"),
        ("warmstart.source=solutions", "did you mean 'solution'?"),
        ("rollout.max_response_tokens=45", "a trace must fit rollout.max_response_tokens"),
    ],
)
def test_a_mistake_is_one_error_with_the_fix(recipe: Path, override: str, said: str) -> None:
    result = run_cli("warmstart", recipe, override)
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output


def test_a_model_that_is_there_is_not_overwritten(
    recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    policy = random_policy(tmp_path_factory, "llama3")
    result = run_cli("warmstart", recipe, f"policy.model={policy}")
    assert result.exit_code == 2 and "name that one in warmstart.model" in " ".join(result.output.split())
