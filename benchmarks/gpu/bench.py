"""On a GPU, with random weights: sampling, the trainer's updates with prefixes shared and padded, their
utilisation, memory beside its estimate, time lost to agents; and a short run that learns.

One command, at most nine minutes on an H200: `bash benchmarks/gpu/run.sh`. The record, with date and
hardware, is results/gpu/NAME.json; benchmarks/page.py makes the table of it.

Not measured here: several GPUs, vLLM. `--device cpu --quick` proves that the script runs, nothing else; on a
GPU it was never run.
"""

import argparse
import asyncio
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from math import log
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate import Accelerator
from shapes import SHAPES, Shape, peak_flops
from transformers import PreTrainedModel

from aipo.assembly.memory import footprint
from aipo.config.settings import Settings
from aipo.core.advantages import Advantage
from aipo.core.batch import Row as TokenRow
from aipo.core.batch import weighted_rows
from aipo.core.objective import ObjectiveSettings
from aipo.core.tokens import Segment, TokenStream
from aipo.core.types import Source, StopReason
from aipo.engines.base import GenerationRequest
from aipo.engines.precision import compute_in
from aipo.engines.transformers import TransformersEngine
from aipo.planning.memory import device_memory
from aipo.training.events import StopRunError
from aipo.training.log_probs import PolicyForward
from aipo.training.model import checkpoints_activations
from aipo.training.optimizers import OPTIMIZERS
from aipo.training.update import Updater, UpdateSettings
from measure import ROOT, tokenizer

RECORDS = ROOT / "results" / "gpu"
PROMPT_TOKENS, NEW_TOKENS, CONSULTATIONS = 256, 192, 2
FEEDBACK_TOKENS = 32
SIBLINGS = 8
PARTS = ((1024, 3072), (3072, 1024))
"""Tokens of a prompt and of a response, 4,096 together."""
LATENCIES_S = (0.0, 0.3, 3.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    shape: str
    what: str
    value: float
    unit: str
    detail: str = ""


class Bench:
    """One shape on one device."""

    def __init__(self, name: str, device: torch.device, quick: bool) -> None:
        self.name, self.shape, self.device = name, SHAPES[name], device
        self.quick = quick
        self.model = self.shape.model(device, torch.float32 if self.shape.masters else torch.bfloat16)
        compute_in(self.model, torch.bfloat16)
        self.slots = 8 if quick else 128

    def rows(self) -> Iterator[Row]:
        """Measure one thing after the other."""
        yield from self.decode()
        yield from self.consultations()
        yield from self.update()

    def decode(self) -> Iterator[Row]:
        """Tokens/s of the engine beside `model.generate`, equal lengths."""
        new = 16 if self.quick else NEW_TOKENS
        ours = self._timed(lambda: self._rollouts(new, 0.0, consultations=0))
        yield Row(
            self.name, "decode", self.slots * new / ours, "tokens/s", f"{self.slots} rows, {new} new each"
        )
        ids = torch.randint(300, 1900, (self.slots, PROMPT_TOKENS), device=self.device)
        theirs = self._timed(lambda: _generate(self.model, ids, new))
        yield Row(self.name, "decode, model.generate", self.slots * new / theirs, "tokens/s", "the same rows")

    def consultations(self) -> Iterator[Row]:
        """Time lost: wall time over that with agents that answer at once."""
        new = 8 if self.quick else 64
        walls = {}
        for latency_s in LATENCIES_S[: 2 if self.quick else 3]:
            walls[latency_s] = self._timed(partial(self._rollouts, new, latency_s, CONSULTATIONS))
            if latency_s:
                lost = walls[latency_s] - walls[0.0]
                waited = CONSULTATIONS * latency_s
                detail = f"of {walls[latency_s]:.2f} s; each of {self.slots} rollouts waits for {waited:g} s"
                yield Row(self.name, f"time lost at {latency_s:g} s an agent", lost, "s", detail)

    def update(self) -> Iterator[Row]:
        """The trainer's own updates of groups of siblings, with AdamW: prefixes shared, and padded."""
        for prompt, response in ((48, 16),) if self.quick else PARTS:
            for share in (True, False):
                yield from self._update(prompt, response, share)

    def _update(self, prompt: int, response: int, share: bool) -> Iterator[Row]:
        length, distinct = prompt + response, prompt + SIBLINGS * response
        how = "prefixes shared" if share else "padded"
        what = f"update, {SIBLINGS} rows of {prompt:,} + {response:,} tokens, {how}"
        settings = self._settings(prompt, response, share)
        estimated = f"estimated {device_memory(footprint(settings, self.model)).update / 1e9:.2f} GB"
        updater, rows = self._updater(settings), _rows(self.shape, prompt, response)
        self.model.train()
        try:
            with _peak(self.device) as peak:
                taken = self._timed(lambda: updater.apply([rows], ObjectiveSettings()))
        except (torch.OutOfMemoryError, StopRunError) as error:
            yield Row(self.name, what, float("nan"), "s", f"{type(error).__name__}; {estimated}")
            return
        finally:
            self.model.eval()
            self.model.zero_grad(set_to_none=True)
        tokens = distinct if share else SIBLINGS * length
        flops = self.shape.flops_of_update(self.model, tokens, length) / taken
        share_of_peak, rate = flops / peak_flops(_name(self.device)), f"{flops / 1e12:.1f} TFLOP/s"
        speed = f"{SIBLINGS * length / taken:,.0f} tokens/s, {tokens:,} computed"
        yield Row(self.name, what, taken, "s", speed)
        yield Row(self.name, f"{what}: utilisation", share_of_peak, "of peak", rate)
        yield Row(self.name, f"{what}: peak memory", peak[0] / 1e9, "GB", estimated)

    def _settings(self, prompt: int, response: int, share: bool) -> Settings:
        """Return what a recipe would say of such an update."""
        return Settings.model_validate(
            {
                "run": {"device": self.device.type},
                "rollout": {
                    "rollouts_per_prompt": SIBLINGS,
                    "max_prompt_tokens": prompt,
                    "max_response_tokens": response,
                },
                "train": {"prompts_per_step": 1, "minibatches_per_step": 1, "share_prefixes": share},
            }
        )

    def _updater(self, settings: Settings) -> Updater:
        """Return what the trainer would build."""
        t, accelerator = settings.train, Accelerator(cpu=self.device.type == "cpu")
        forward = PolicyForward(self.model, None, checkpoints_activations(t, self.model))
        optimiser = OPTIMIZERS[t.optimizer].make(list(self.model.parameters()), lr=1e-6, weight_decay=0.0)
        prepared, wrapped = accelerator.prepare(forward, optimiser)
        wanted = UpdateSettings(
            temperature=1.0,
            microbatch_tokens=t.microbatch_tokens,
            max_grad_norm=1.0,
            pad_id=0,
            share_prefixes=t.share_prefixes,
        )
        return Updater(accelerator, prepared, wrapped, wanted)

    def _rollouts(self, new: int, latency_s: float, consultations: int) -> None:
        """Decode; pause, wait for an agent, go on behind its words. Parts are of different lengths then."""
        capacity = PROMPT_TOKENS + (consultations + 1) * (2 * new + FEEDBACK_TOKENS)
        engine = TransformersEngine(self.model, tokenizer(end=None), slots=self.slots, capacity=capacity)
        prompt = tuple(range(300, 300 + PROMPT_TOKENS))

        async def one(number: int) -> None:
            ids, rng = prompt, Random(number)
            for part in range(consultations + 1):
                wanted = rng.randint(new // 2, new + new // 2) if consultations else new
                done = await engine.generate(
                    GenerationRequest(
                        session=f"r{number}", prefix_ids=ids, max_new_tokens=wanted, seed=number
                    )
                )
                assert done.stop is StopReason.LENGTH
                ids = (*ids, *done.ids, *range(400, 400 + FEEDBACK_TOKENS))
                if part < consultations and latency_s:
                    await asyncio.sleep(latency_s)
            await engine.release(f"r{number}")

        async def all_of_them() -> None:
            await asyncio.gather(*(one(i) for i in range(self.slots)))

        asyncio.run(all_of_them())

    def _timed(self, run: Callable[[], object], repeats: int = 3) -> float:
        """Return the median of wall seconds, after one run that is not counted."""
        taken = []
        for _ in range(1 + (1 if self.quick else repeats)):
            _wait(self.device)
            began = time.perf_counter()
            run()
            _wait(self.device)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken[1:])


def _rows(shape: Shape, prompt: int, response: int) -> list[TokenRow]:
    """Return siblings with the same prompt and random responses, each as likely as random weights have it."""
    rng, log_p = Random(1), -log(shape.vocabulary)
    asked = tuple(rng.randrange(shape.vocabulary) for _ in range(prompt))
    streams = []
    for _ in range(SIBLINGS):
        said = tuple(rng.randrange(shape.vocabulary) for _ in range(response))
        sampled = Segment(Source.POLICY, said, (log_p,) * response)
        streams.append(TokenStream((Segment(Source.PROMPT, asked), sampled)))
    advantages = [Advantage(1.0 if i % 2 else -1.0, 0.0) for i in range(SIBLINGS)]
    return weighted_rows(streams, advantages, "token_mean", feedback_trained=False)


def learning(device: str, quick: bool) -> Iterator[Row]:
    """A short AIPO run from a warm start on a task in the package: does it learn on this device?"""
    with tempfile.TemporaryDirectory(prefix="aipo-gpu-") as name:
        own = [f"run.device={device}", f"policy.model={name}/warm/policy"]
        short = ["warmstart.steps=20", "warmstart.sequences_per_step=8"] if quick else []
        recipe, began = ROOT / "recipes" / "tiny.toml", time.perf_counter()
        _aipo("warmstart", recipe, f"run.output={name}/warm", *own, *short)
        warmed = time.perf_counter()
        steps = 2 if quick else 60
        run = [f"run.output={name}/run", f"train.steps={steps}", "evaluate.at_steps=[]"]
        _aipo("train", recipe, *own, *run, *(["train.prompts_per_step=4"] if quick else []))
        taken = time.perf_counter() - warmed
        lines = [json.loads(line) for line in (Path(name) / "run" / "metrics.jsonl").read_text().splitlines()]
    part = max(1, steps // 6)
    rewards = [row["reward_solo"] for row in lines]
    first, last = (statistics.mean(values) for values in (rewards[:part], rewards[-part:]))
    detail = f"{first:.3f} in its first {part} steps; warm start {warmed - began:.0f} s"
    yield Row("0.2 M", f"AIPO, {steps} steps: solo reward of the last {part}", last, "", detail)
    yield Row("0.2 M", f"AIPO, {steps} steps", taken, "s", "with the start of the process")


def _aipo(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "aipo", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _generate(model: PreTrainedModel, ids: torch.Tensor, new: int) -> None:
    with torch.inference_mode():
        model.generate(  # type: ignore[operator]
            input_ids=ids, max_new_tokens=new, min_new_tokens=new, do_sample=True, pad_token_id=0
        )


@contextmanager
def _peak(device: torch.device) -> Iterator[list[float]]:
    peak = [float("nan")]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield peak
    if device.type == "cuda":
        peak[0] = torch.cuda.max_memory_allocated()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu"


def main() -> None:
    """Measure the shapes and write what there is after each."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/bench.py")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--shapes", default="", help="default: 0.5B,1.5B,7B; quick: tiny")
    parser.add_argument("--quick", action="store_true", help="seconds; proves nothing")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder of the record (default: results/gpu)"
    )
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU: nothing was measured. `--device cpu --quick` tries the script")
    device, rows = torch.device(given.device), []
    output = given.output or (None if given.quick else RECORDS)

    def keep(found: Iterator[Row]) -> None:
        for row in found:
            rows.append(row)
            print(f"{row.shape}  {row.what}: {row.value:,.3g} {row.unit}  {row.detail}", flush=True)
            if output:
                _write(output, rows, device)

    keep(learning(given.device, given.quick))
    for name in (given.shapes or ("tiny" if given.quick else "0.5B,1.5B,7B")).split(","):
        keep(Bench(name, device, given.quick).rows())
        gc.collect()


def _write(folder: Path, rows: list[Row], device: torch.device) -> None:
    name = _name(device).replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _name(device),
        "versions": {p: metadata.version(p) for p in ("torch", "transformers")},
        "cuda": torch.version.cuda,
        "rows": [asdict(row) for row in rows],
    }
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
