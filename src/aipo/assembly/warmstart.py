"""The policy that a task makes for its runs to begin with, before any reinforcement learning.

It is made once: a folder that holds it already, made with the same settings, is left as it is.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from aipo.assembly.agents import build_protocol, wording_of
from aipo.assembly.parts import prepare_process
from aipo.config.layers import load_layers
from aipo.config.loader import diff_settings, dump_settings, load_settings
from aipo.config.settings import Settings
from aipo.consult.codec import TagCodec
from aipo.consult.prompts import chat_prompt_ids, system_prompt
from aipo.consult.protocol import NOTICES
from aipo.core.types import Condition
from aipo.tasks.base import Start, StartRequest
from aipo.tasks.registry import task_spec
from aipo.training.events import Reporter, duration
from aipo.training.model import save_policy


def start_of(settings: Settings) -> Start:
    """Return how the task makes its first policy. Raises `ValueError` where it does not."""
    if start := task_spec(settings.task.name).start:
        return start
    raise ValueError(
        f"task.name = {settings.task.name!r} has no warm start; name a real model in policy.model, and in a "
        "comparison set compare.warmstart = false"
    )


def load_start_settings(recipe: Path, overrides: Sequence[str] = ()) -> Settings:
    """Return a recipe's settings with the tables of its task's start. Raises `ValueError`."""
    return load_layers(start_of(load_settings(recipe, overrides)).settings, recipe, overrides)


def make_warm_start(settings: Settings, reporter: Reporter) -> Path:
    """Make and save the first policy; return its folder. Nothing is done if it is there already."""
    folder = settings.run.output / "policy"
    if (folder / "config.json").exists():
        _refuse_other_settings(settings)
        reporter.note(f"the warm start is there already: {folder}")
        return folder
    start, consult = start_of(settings), settings.consult
    prepare_process(settings)
    protocol = build_protocol(settings, everyone=True)

    def prompts(tokenizer: PreTrainedTokenizerBase) -> Callable[[str, Condition], Sequence[int]]:
        codec = TagCodec(tokenizer, protocol)

        def ids(problem: str, condition: Condition) -> Sequence[int]:
            override = consult.solo_prompt if condition is Condition.SOLO else consult.consulting_prompt
            system = system_prompt(condition, protocol, override)
            return chat_prompt_ids(tokenizer, system, problem, codec.forbidden)

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
    (settings.run.output / "settings.toml").write_text(dump_settings(settings))
    reporter.note(f"written to {folder}")
    return folder


def _refuse_other_settings(settings: Settings) -> None:
    """Refuse a warm start that was made otherwise; how it is trained on afterwards does not matter."""
    stored = settings.run.output / "settings.toml"
    if not stored.exists():
        return
    kept = ("warmstart.", "consult.", "task.", "run.seed")
    changed = [d for d in diff_settings(load_layers(type(settings), stored), settings) if d.startswith(kept)]
    if changed:
        raise ValueError(
            f"run.output = {str(settings.run.output)!r} holds a warm start with other settings; choose "
            "another folder, go back to its settings or remove it:\n  " + "\n  ".join(changed)
        )
