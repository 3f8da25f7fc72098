"""The files of a run stay in step with its checkpoints, whatever moment a crash chose.

Proves: a torn last line is left out; a rewind drops later steps from every file; a folder is claimed once,
for one run; a checkpoint without its manifest does not exist; the newest k are kept; what is restored is
what was saved.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from aipo.config.loader import load_settings
from aipo.config.settings import Settings
from aipo.training.checkpoint import CheckpointError, Checkpoints
from aipo.training.journal import EVALUATION, METRICS, ROLLOUTS, TIMINGS, Journal, RunFolderError, read_lines
from aipo.training.sharded import Whole
from aipo.training.snapshot import Learner, snapshot
from support.policies import byte_level_tokenizer

FILES = (METRICS, ROLLOUTS, TIMINGS, EVALUATION)


def settings_of(folder: Path, *overrides: str) -> Settings:
    return load_settings(None, [f"run.output={folder}", *overrides])


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(settings_of(tmp_path / "run"))


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


class TestJournal:
    def test_records_are_read_as_they_were_appended(self, journal: Journal) -> None:
        records = [{"step": 1, "loss": 0.1}, {"step": 2, "note": "a\u2028b\x85c"}]
        journal.append(METRICS, records[:1])
        journal.append(METRICS, records[1:])
        assert read_lines(journal.folder / METRICS) == records

    def test_a_file_that_is_not_there_has_no_records(self, journal: Journal) -> None:
        assert read_lines(journal.folder / METRICS) == []

    @pytest.mark.parametrize("torn", ['{"step": 3, "los', "{", '{"step": 3', '"', "\x00\x00"])
    def test_a_torn_last_line_is_left_out(self, journal: Journal, torn: str) -> None:
        journal.append(METRICS, [{"step": 1}, {"step": 2}])
        with (journal.folder / METRICS).open("a") as file:
            file.write(torn)
        assert [record["step"] for record in read_lines(journal.folder / METRICS)] == [1, 2]

    def test_a_line_torn_inside_a_character_is_left_out(self, journal: Journal) -> None:
        journal.append(METRICS, [{"step": 1}])
        with (journal.folder / METRICS).open("ab") as file:
            file.write('{"step": 2, "text": "é'.encode()[:-1])
        assert [record["step"] for record in read_lines(journal.folder / METRICS)] == [1]
        journal.rewind(1)
        assert steps_of(journal.folder / METRICS) == [1]

    def test_a_rewind_drops_later_steps_and_torn_lines_from_every_file(self, journal: Journal) -> None:
        for name in FILES:
            journal.append(name, [{"step": step, "value": 0.1} for step in (1, 2, 2, 3)])
            with (journal.folder / name).open("a") as file:
                file.write('{"step": 1, "to')
        journal.rewind(2)
        assert [steps_of(journal.folder / name) for name in FILES] == [[1, 2, 2]] * 4

    def test_a_rewind_keeps_the_bytes_of_what_stays(self, journal: Journal) -> None:
        journal.append(METRICS, [{"step": 1, "x": 0.1 + 0.2, "text": "a\u2028b"}])
        before = (journal.folder / METRICS).read_bytes()
        journal.append(METRICS, [{"step": 2}])
        journal.rewind(1)
        assert (journal.folder / METRICS).read_bytes() == before

    def test_after_a_rewind_appended_lines_stand_on_lines_of_their_own(self, journal: Journal) -> None:
        journal.append(METRICS, [{"step": 1}])
        with (journal.folder / METRICS).open("a") as file:
            file.write('{"step": 2')
        journal.rewind(1)
        journal.append(METRICS, [{"step": 2}])
        assert steps_of(journal.folder / METRICS) == [1, 2]

    def test_a_rewind_leaves_no_other_files(self, journal: Journal) -> None:
        journal.append(METRICS, [{"step": 1}])
        journal.rewind(0)
        assert sorted(path.name for path in journal.folder.iterdir()) == [".lock", METRICS, "settings.toml"]

    def test_lines_of_another_program_are_refused_and_kept(self, journal: Journal) -> None:
        (journal.folder / METRICS).write_text('{"epoch": 1}\n')
        with pytest.raises(RunFolderError, match="has no step"):
            journal.rewind(0)
        assert (journal.folder / METRICS).read_text() == '{"epoch": 1}\n'


class TestClaim:
    def test_the_same_settings_claim_their_folder_again(self, tmp_path: Path) -> None:
        Journal(settings_of(tmp_path / "run"))
        Journal(settings_of(tmp_path / "run"))
        assert load_settings(tmp_path / "run" / "settings.toml") == settings_of(tmp_path / "run")

    def test_other_settings_are_refused_with_the_difference(self, tmp_path: Path) -> None:
        Journal(settings_of(tmp_path / "run"))
        with pytest.raises(RunFolderError, match="run.seed: 0 -> 7"):
            Journal(settings_of(tmp_path / "run", "run.seed=7"))

    def test_an_empty_folder_is_claimed_and_a_foreign_one_is_not(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        Journal(settings_of(tmp_path / "empty"))
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "notes.txt").touch()
        with pytest.raises(RunFolderError, match="is not empty and not a run"):
            Journal(settings_of(tmp_path / "full"))
        assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]

    def test_a_claim_that_was_cut_short_can_be_made_again(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "settings.partial").write_text("[run]\nsee")
        Journal(settings_of(tmp_path / "run"))
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "settings.toml"]


class State:
    """A model with an optimiser that has state."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=11, num_hidden_layers=1, bos_token_id=None, **shape)
        self.model: PreTrainedModel = LlamaForCausalLM(config)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: 1 / (step + 1))
        tokenizer = byte_level_tokenizer(["a"])
        self.learner = Learner(
            model=self.model,
            tokenizer=tokenizer,
            optimiser=self.optimiser,
            scheduler=self.scheduler,
            policy=Whole(self.model),
        )
        self.step()

    def step(self) -> None:
        self.model(input_ids=torch.arange(5).unsqueeze(0)).logits.square().sum().backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.scheduler.step()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def save(self, checkpoints: Checkpoints, step: int, **state: object) -> Path:
        return checkpoints.save(snapshot(self.learner, {"step": step, **state}, periodic=True, copy=True))

    def restore(self, checkpoints: Checkpoints, step: int) -> dict[str, object]:
        return checkpoints.restore(step, self.learner)


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class TestCheckpoints:
    def test_a_restored_state_goes_on_like_the_one_that_was_saved(self, tmp_path: Path) -> None:
        saved, other = State(1), State(2)
        checkpoints = Checkpoints(tmp_path, keep=2)
        saved.save(checkpoints, 4, note=[1, 2])
        assert other.restore(checkpoints, 4) == {"step": 4, "note": [1, 2]}
        assert_equal(saved.weights(), other.weights())
        assert other.scheduler.get_last_lr() == saved.scheduler.get_last_lr()
        saved.step()
        other.step()
        assert_equal(saved.weights(), other.weights())

    def test_the_newest_are_kept(self, tmp_path: Path) -> None:
        checkpoints, state = Checkpoints(tmp_path, keep=2), State(1)
        for step in (1, 2, 10):
            state.save(checkpoints, step)
        assert checkpoints.steps() == [2, 10]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000010"]

    def test_a_folder_without_a_manifest_does_not_exist(self, tmp_path: Path) -> None:
        checkpoints, state = Checkpoints(tmp_path, keep=3), State(1)
        state.save(checkpoints, 1)
        (state.save(checkpoints, 2) / "manifest.json").unlink()
        assert checkpoints.steps() == [1]

    def test_the_manifest_is_written_last_and_the_folder_named_after_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoints, state = Checkpoints(tmp_path, keep=1), State(1)
        state.save(checkpoints, 1)
        seen: list[set[str]] = []
        write = Path.write_text

        def crash_at_manifest(self: Path, text: str) -> int:
            if self.name == "manifest.json":
                seen.append({path.name for path in self.parent.iterdir()})
                raise KeyboardInterrupt
            return write(self, text)

        monkeypatch.setattr(Path, "write_text", crash_at_manifest)
        with pytest.raises(KeyboardInterrupt):
            state.save(checkpoints, 2)
        assert seen == [{"policy", "optimiser.pt", "state.json"}]
        assert checkpoints.steps() == [1], "the old one is there until the new one is whole"
        monkeypatch.undo()
        state.save(checkpoints, 2)
        assert checkpoints.steps() == [2]

    def test_a_step_that_is_saved_again_replaces_the_first(self, tmp_path: Path) -> None:
        checkpoints, state = Checkpoints(tmp_path, keep=2), State(1)
        state.save(checkpoints, 3)
        state.step()
        state.save(checkpoints, 3)
        other = State(2)
        other.restore(checkpoints, 3)
        assert_equal(other.weights(), state.weights())

    @pytest.mark.parametrize("name", ["state.json", "optimiser.pt", "policy/model.safetensors"])
    @pytest.mark.parametrize("spoilt", [None, b"", b"torn"])
    def test_a_spoilt_checkpoint_is_named_with_what_to_do(
        self, tmp_path: Path, name: str, spoilt: bytes | None
    ) -> None:
        checkpoints, state = Checkpoints(tmp_path, keep=2), State(1)
        path = state.save(checkpoints, 5) / name
        path.unlink()
        if spoilt is not None:
            path.write_bytes(spoilt)
        with pytest.raises(CheckpointError, match=r"step-000005 cannot be read .* remove it to fall back"):
            State(2).restore(checkpoints, 5)

    def test_a_checkpoint_of_another_version_is_refused(self, tmp_path: Path) -> None:
        checkpoints, state = Checkpoints(tmp_path, keep=2), State(1)
        folder = state.save(checkpoints, 5)
        (folder / "manifest.json").write_text('{"schema": 99, "step": 5}')
        with pytest.raises(CheckpointError, match="schema 99"):
            state.restore(checkpoints, 5)


def test_a_folder_that_another_process_writes_to_is_refused_until_that_one_ends(tmp_path: Path) -> None:
    settings = load_settings(None, [f"run.output={tmp_path / 'run'}"])
    hold = (
        "import sys, time; from aipo.config.loader import load_settings\n"
        "from aipo.training.journal import Journal\n"
        "held = Journal(load_settings(None, [sys.argv[1]])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, f"run.output={tmp_path / 'run'}"], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(RunFolderError, match="being written to by another process"):
            Journal(settings)
        other.kill()
    Journal(settings)  # a lock does not outlive its process
