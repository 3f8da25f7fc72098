"""A model card says what the run's records say, and nothing in them can break out of its place."""

import json
from pathlib import Path

import pytest
import yaml

from aipo.config.loader import dump_settings, load_settings
from aipo.config.toml import toml_text
from aipo.evaluation.model_card import model_card, write_model_card
from aipo.evaluation.records import SCHEMA, EvaluationRecord, ProblemResult, append_record

HOSTILE = (
    'a\n---\nlicense: mit\n| x | y |\n```\n# <script>alert(1)</script> "q" \u2028 \x00 [l](javascript:x)'
)


def run_of(folder: Path, *overrides: str, table: dict[str, dict[str, object]] | None = None) -> Path:
    """A finished run's folder: settings and two steps of metrics."""
    recipe = folder / "recipe.toml"
    recipe.write_text(toml_text(table or {}))
    run = folder / "run"
    run.mkdir()
    settings = load_settings(recipe, [f"run.output={run}", "train.steps=2", *overrides])
    (run / "settings.toml").write_text(dump_settings(settings))
    rows = [{"step": step, "first_ratio_error": 2e-7 * step} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def header_of(card: str) -> dict[str, object]:
    """What stands between the first two marks, which must be the first line and the end of the header."""
    assert card.startswith("---\n")
    header, mark, body = card.removeprefix("---\n").partition("\n---\n")
    assert mark and "\n---\n" not in body
    return dict(yaml.safe_load(header))


def test_a_card_says_what_was_recorded(tmp_path: Path) -> None:
    run = run_of(
        tmp_path, "run.seed=7", "train.learning_rate=0.01", "policy.model=Qwen/Qwen2.5-0.5B-Instruct"
    )
    agents = {"verify": {"backend": "scripted", "model": "", "base_url": "http://secret.example"}}
    (run / "agents.json").write_text(json.dumps([{"from_step": 1, "agents": agents}]))
    for step, correct in ((1, 0), (2, 12)):
        results = tuple(
            ProblemResult(
                problem=f"p{i}", stratum="hard", samples=16, correct=correct, ungraded=0, truncated=0
            )
            for i in range(8)
        )
        append_record(
            run / "evaluation.jsonl",
            EvaluationRecord(
                schema=SCHEMA,
                run="run",
                method="run",
                seed=7,
                step=step,
                split="test",
                mode="unanswered",
                results=results,
            ),
        )
    card = model_card(run)
    header = header_of(card)
    assert header["base_model"] == "Qwen/Qwen2.5-0.5B-Instruct" and "license" not in header
    assert "| seed | 7 |" in card and "| policy updates | 2 of 2 |" in card
    assert "    train.learning_rate: 1e-06 -> 0.01" in card
    assert "from step 1, verify: backend scripted" in card
    assert "reasons alone after training" in card and "Not stated yet" in card
    assert "| unanswered | test | 2 | hard | 1 | .75 [.75, .75] | 8 x 16 |" in card
    assert "| test | 1 |" not in card, "only the last step's evaluation counts"
    assert "secret.example" not in card and str(tmp_path) not in card
    assert "| largest error of the first update's ratio | 4e-07 |" in card
    assert "transformers 5" in card


def test_a_run_without_agents_and_evaluation_says_so(tmp_path: Path) -> None:
    card = model_card(run_of(tmp_path, "agents.enabled=[]", "policy.lora_rank=8", "policy.precision=float32"))
    assert "## Agents in training\n\nNone." in card and "None was recorded" in card
    assert "| trained | LoRA of rank 8, merged, float32 |" in card
    assert "base_model" not in header_of(card)


def test_hostile_text_of_records_breaks_neither_header_nor_tables_nor_the_code_block(tmp_path: Path) -> None:
    plain = model_card(run_of(tmp_path))
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    run = run_of(
        hostile,
        table={
            "policy": {"model": HOSTILE.replace("\x00", "")},
            "consult": {"feedback_tag": "note", "solo_prompt": HOSTILE.replace("\x00", "")},
            "task": {"name": "jsonl", "train_file": f"{HOSTILE.replace(chr(0), '').replace('/', '')}.jsonl"},
        },
    )
    (run / "agents.json").write_text(
        json.dumps([{"from_step": 1, "agents": {"verify": {"backend": HOSTILE, HOSTILE: HOSTILE}}}])
    )
    append_record(
        run / "evaluation.jsonl",
        EvaluationRecord(
            schema=SCHEMA,
            run=HOSTILE,
            method=HOSTILE,
            seed=0,
            step=2,
            split="test",
            mode=HOSTILE,
            results=(
                ProblemResult(problem="p", stratum=HOSTILE, samples=2, correct=1, ungraded=0, truncated=0),
            ),
        ),
    )
    card = model_card(run)
    assert header_of(card) == header_of(plain)
    assert "<script" not in card.split("## Settings")[0] and "\u2028" not in card and "\x00" not in card
    lines = card.splitlines()
    assert [x for x in lines if x.startswith("#")] == [x for x in plain.splitlines() if x.startswith("#")]
    assert not any(x.startswith(("```", "license", "~~~")) for x in lines)
    scores = [line for line in lines if line.startswith("| a ")]
    assert scores and all(line.replace("\\|", "").count("|") == 8 for line in scores)
    block = card.split("## Settings")[1].split("## Versions")[0].strip().splitlines()[2:]
    assert all(line.startswith("    ") for line in block)


def test_the_same_records_give_the_same_bytes_and_the_card_stands_in_the_policys_folder(
    tmp_path: Path,
) -> None:
    run = run_of(tmp_path)
    (run / "policy").mkdir()
    path = write_model_card(run, run / "policy")
    first = path.read_bytes()
    assert write_model_card(run, run / "policy").read_bytes() == first
    assert sorted(p.name for p in (run / "policy").iterdir()) == ["README.md"]


def test_records_that_cannot_be_read_are_an_error_that_names_them(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    (run / "evaluation.jsonl").write_text('{"schema": 99}\n')
    with pytest.raises(ValueError, match=r"evaluation.jsonl:1"):
        model_card(run)
