"""`aipo warmstart`: make the tiny policy of the CPU task."""

from pathlib import Path

import typer

from aipo.cli.assembly import build_protocol, prepare_process
from aipo.cli.console import console, duration, plain_errors
from aipo.cli.options import Overrides, Recipe
from aipo.config.loader import dump_settings, load_settings
from aipo.config.settings import Settings
from aipo.consult.codec import TagCodec
from aipo.consult.prompts import chat_prompt_ids, system_prompt
from aipo.consult.protocol import NOTICES
from aipo.core.types import AgentName
from aipo.tasks.leg_counting.notation import vocabulary
from aipo.tasks.leg_counting.traces import Trace
from aipo.train.tiny import build_model, build_tokenizer
from aipo.train.warmstart import WarmstartProgress, save_policy, warm_start


def warmstart(recipe: Recipe, overrides: Overrides = None) -> None:
    """Make the tiny policy of the CPU task: a real transformers model, trained from nothing in minutes.

    It learns to work through easy problems, and how to consult, on animals that do not exist. The 18 animals
    of the hard problems never occur. The policy is written to `policy/` in run.output, as a plain Hugging
    Face folder.
    """
    with plain_errors():
        settings = load_settings(recipe, overrides or [])
        make_warm_start(settings)


def make_warm_start(settings: Settings) -> Path:
    """Train and save the tiny policy; return its folder. Nothing is done if it is there already."""
    folder = settings.run.output / "policy"
    if (folder / "config.json").exists():
        console.print(f"the warm start is there already: {folder}", markup=False)
        return folder
    if settings.task.name != "leg_counting":
        raise ValueError(
            f"task.name = {settings.task.name!r}: only leg_counting has a warm start; use a real model"
        )
    prepare_process(settings)
    protocol = build_protocol(settings.consult, tuple(AgentName))
    consult = settings.consult
    prompts = [consult.consulting_prompt or "", consult.solo_prompt or ""]
    words = [*vocabulary(), *" ".join([*NOTICES.values(), *prompts]).split()]
    tokenizer = build_tokenizer(words, protocol.control_strings)
    codec = TagCodec(tokenizer, protocol)
    model = build_model(tokenizer, settings.warmstart)

    def prompt_ids(example: Trace) -> list[int]:
        solo = example.condition == "solo"
        override = consult.solo_prompt if solo else consult.consulting_prompt
        system = system_prompt(example.condition, protocol, override)
        return chat_prompt_ids(tokenizer, system, example.problem, codec.forbidden)

    parameters = sum(p.numel() for p in model.parameters())
    console.print(f"warm start: {settings.warmstart.architecture}, {parameters:,} parameters", markup=False)
    warm_start(model, tokenizer, prompt_ids, settings, _print)
    save_policy(model, tokenizer, folder)
    (settings.run.output / "settings.toml").write_text(dump_settings(settings))
    console.print(f"written to {folder}", markup=False)
    return folder


def _print(progress: WarmstartProgress) -> None:
    remaining = progress.elapsed_s / progress.step * (progress.steps - progress.step)
    typer.echo(
        f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}  remaining {duration(remaining)}"
    )
