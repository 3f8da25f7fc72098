"""The policy that a task makes for its runs to begin with, before any reinforcement learning.

It is made once: a folder that holds it already, made with the same settings, is left as it is.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from aipo.assembly.agents import build_protocol, wording_of
from aipo.assembly.parts import prepare_process
from aipo.assembly.pretrained import refuse_no_start, warm_start_on_traces
from aipo.config.layers import load_layers
from aipo.config.loader import diff_settings, dump_settings, load_settings
from aipo.config.settings import Settings
from aipo.config.warmstart import TraceSettings
from aipo.consult.codec import TagCodec
from aipo.consult.prompts import chat_prompt_ids, system_prompt
from aipo.consult.protocol import NOTICES
from aipo.core.types import Condition
from aipo.tasks.base import StartRequest
from aipo.tasks.registry import task_spec
from aipo.training.events import Reporter, duration
from aipo.training.model import save_policy

_SETTINGS = "settings.toml"
"""Beside the policy."""


def load_start_settings(recipe: Path, overrides: Sequence[str] = ()) -> Settings:
    """Return a recipe's settings with the tables of its start. Raises `ValueError`."""
    model = start_settings(load_settings(recipe, overrides))
    return load_layers(model, recipe, overrides)


def start_settings(settings: Settings) -> type[Settings]:
    """Return the settings of the start: those of the task's own policy, else of a start on traces."""
    start = task_spec(settings.task.name).start
    return start.settings if start else TraceSettings


def start_folder(settings: Settings) -> Path:
    """Return where the first policy is written: where the run will look for it, else below run.output."""
    return Path(settings.policy.model) if settings.policy.model else settings.run.output / "policy"


def make_warm_start(settings: Settings, reporter: Reporter) -> Path:
    """Make and save the first policy; return its folder. Nothing is done if it is there already.

    `settings` are of the class that `start_settings` names. A start on traces that was interrupted goes on.
    """
    folder = start_folder(settings)
    if isinstance(settings, TraceSettings):
        refuse_no_start(settings, folder)
    if (folder / "config.json").exists():
        _refuse_other_settings(settings, folder)
        reporter.note(f"the warm start is there already: {folder}")
        return folder
    if isinstance(settings, TraceSettings):
        _refuse_other_settings(settings, folder)
        warm_start_on_traces(settings, folder, reporter)
        return folder
    start, consult = task_spec(settings.task.name).start, settings.consult
    assert start is not None
    prepare_process(settings)
    protocol = build_protocol(settings, everyone=True)

    def prompts(tokenizer: PreTrainedTokenizerBase) -> Callable[[str, Condition], Sequence[int]]:
        codec = TagCodec(tokenizer, protocol)

        def ids(problem: str, condition: Condition) -> Sequence[int]:
            override = consult.solo_prompt if condition is Condition.SOLO else consult.consulting_prompt
            system = system_prompt(condition, protocol, override)
            return chat_prompt_ids(tokenizer, system, problem, codec.forbidden, date=settings.policy.date)

        return ids

    def progress(step: int, steps: int, loss: float, elapsed_s: float) -> None:
        remaining = duration(elapsed_s / step * (steps - step))
        reporter.note(f"step {step}/{steps}  loss {loss:.4f}  remaining {remaining}")

    spoken = [*NOTICES.values(), consult.consulting_prompt or "", consult.solo_prompt or ""]
    request = StartRequest(
        settings=settings,
        wording=wording_of(protocol),
        control_strings=protocol.control_strings,
        words=" ".join(spoken).split(),
        prompts=prompts,
        note=reporter.note,
        progress=progress,
    )
    save_policy(*start.make(request), folder)
    folder.with_name(_SETTINGS).write_text(dump_settings(settings))
    reporter.note(f"written to {folder}")
    return folder


def _refuse_other_settings(settings: Settings, folder: Path) -> None:
    """Refuse a warm start that was made otherwise; how it is trained on afterwards does not matter."""
    stored = folder.with_name(_SETTINGS)
    if not stored.exists():
        return
    kept = ("warmstart.", "consult.", "task.", "run.seed")
    found = diff_settings(load_layers(type(settings), stored), settings)
    changed = [d for d in found if d.startswith(kept) and not d.startswith("warmstart.tries")]
    if changed:
        raise ValueError(
            f"{str(folder.parent)!r} holds a warm start with other settings; choose another folder "
            "(policy.model), go back to its settings or remove it:\n  " + "\n  ".join(changed)
        )
