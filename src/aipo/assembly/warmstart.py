"""The tiny policy that a CPU task begins with, trained on worked examples before any reinforcement learning.

It is made once: a folder that holds it already, made with the same settings, is left as it is.
"""

from pathlib import Path

from aipo.assembly.agents import build_protocol, wording_of
from aipo.assembly.parts import prepare_process
from aipo.config.loader import diff_settings, dump_settings, load_settings
from aipo.config.settings import Settings
from aipo.consult.codec import TagCodec
from aipo.consult.prompts import chat_prompt_ids, system_prompt
from aipo.consult.protocol import NOTICES
from aipo.tasks.base import Trace
from aipo.tasks.registry import task_spec
from aipo.training.events import Reporter, duration
from aipo.training.model import save_policy
from aipo.training.tiny import build_model, build_tokenizer
from aipo.training.warmstart import WarmstartProgress, warm_start


def make_warm_start(settings: Settings, reporter: Reporter) -> Path:
    """Train and save the tiny policy; return its folder. Nothing is done if it is there already."""
    folder = settings.run.output / "policy"
    if (folder / "config.json").exists():
        _refuse_other_settings(settings)
        reporter.note(f"the warm start is there already: {folder}")
        return folder
    make_curriculum = task_spec(settings.task.name).curriculum
    if make_curriculum is None:
        raise ValueError(f"task.name = {settings.task.name!r} has no supervised start; use a real model")
    prepare_process(settings)
    consult = settings.consult
    protocol = build_protocol(settings, everyone=True)
    curriculum = make_curriculum(consult.max_consultations, wording_of(protocol))
    prompts = [consult.consulting_prompt or "", consult.solo_prompt or ""]
    words = [*curriculum.vocabulary(), *" ".join([*NOTICES.values(), *prompts]).split()]
    tokenizer = build_tokenizer(words, protocol.control_strings)
    codec = TagCodec(tokenizer, protocol)
    model = build_model(tokenizer, settings.warmstart)

    def prompt_ids(example: Trace) -> list[int]:
        solo = example.condition == "solo"
        override = consult.solo_prompt if solo else consult.consulting_prompt
        system = system_prompt(example.condition, protocol, override)
        return chat_prompt_ids(tokenizer, system, example.problem, codec.forbidden)

    parameters = sum(p.numel() for p in model.parameters())
    reporter.note(f"warm start: {settings.warmstart.architecture}, {parameters:,} parameters")

    def step(done: WarmstartProgress) -> None:
        remaining = duration(done.elapsed_s / done.step * (done.steps - done.step))
        reporter.note(f"step {done.step}/{done.steps}  loss {done.loss:.4f}  remaining {remaining}")

    warm_start(model, tokenizer, curriculum, prompt_ids, settings, step)
    save_policy(model, tokenizer, folder)
    (settings.run.output / "settings.toml").write_text(dump_settings(settings))
    reporter.note(f"written to {folder}")
    return folder


def _refuse_other_settings(settings: Settings) -> None:
    """Refuse a warm start that was made otherwise; how it is trained on afterwards does not matter."""
    stored = settings.run.output / "settings.toml"
    if not stored.exists():
        return
    kept = ("warmstart.", "consult.", "task.", "run.seed")
    changed = [d for d in diff_settings(load_settings(stored), settings) if d.startswith(kept)]
    if changed:
        raise ValueError(
            f"run.output = {str(settings.run.output)!r} holds a warm start with other settings; choose "
            "another folder, go back to its settings or remove it:\n  " + "\n  ".join(changed)
        )
