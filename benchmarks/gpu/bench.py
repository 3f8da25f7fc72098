"""On a GPU, random weights in bf16: decode and update in tokens/s, utilisation, memory, time lost to agents.

One command, at most nine minutes on an H200: `bash benchmarks/gpu/run.sh`. The record, with date and
hardware, is results/gpu/NAME.json; benchmarks/page.py makes the table of it.

Not measured: quality, several GPUs, vLLM. `--device cpu` with the
shape `tiny` proves that the script runs, nothing else.
"""

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from shapes import SHAPES, peak_flops
from transformers import PreTrainedModel

from aipo.core.types import StopReason
from aipo.engines.base import GenerationRequest
from aipo.engines.transformers import TransformersEngine
from aipo.training.log_probs import PolicyForward
from measure import ROOT, tokenizer

RECORDS = ROOT / "results" / "gpu"
PROMPT_TOKENS, NEW_TOKENS, CONSULTATIONS = 256, 192, 2
FEEDBACK_TOKENS = 32
UPDATE_TOKENS = 16_384
LENGTHS = (4096, 16_384)
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
        self.model = self.shape.model(device, torch.bfloat16)
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
        """Forward and backward of the trainer's own path: tokens/s, utilisation, peak memory."""
        self.model.train()
        for length in (64,) if self.quick else LENGTHS:
            rows = max(1, (128 if self.quick else UPDATE_TOKENS) // length)
            for checkpointing in (False, True):
                yield from self._update(rows, length, checkpointing)
        self.model.eval()

    def _update(self, rows: int, length: int, checkpointing: bool) -> Iterator[Row]:
        what = f"update, {rows} x {length}" + (", checkpointed" if checkpointing else "")
        forward = PolicyForward(self.model, None, checkpointing)
        ids = torch.randint(0, self.shape.vocabulary, (rows, length), device=self.device)

        def step() -> None:
            log_p, _ = forward(ids, 1.0)
            log_p.mean().backward()
            self.model.zero_grad(set_to_none=True)

        try:
            with _peak(self.device) as peak:
                taken = self._timed(step)
        except torch.OutOfMemoryError:
            yield Row(self.name, what, float("nan"), "tokens/s", "out of memory")
            return
        flops = self.shape.flops_of_update(self.model, rows, length) / taken
        share = flops / peak_flops(_name(self.device))
        yield Row(self.name, what, rows * length / taken, "tokens/s", f"{flops / 1e12:.1f} TFLOP/s")
        yield Row(self.name, f"{what}: utilisation", share, "of peak")
        yield Row(self.name, f"{what}: peak memory", peak[0] / 2**30, "GiB", "weights and gradients included")

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

    def _timed(self, run: Callable[[], None], repeats: int = 3) -> float:
        """Return the median of wall seconds, after one run that is not counted."""
        taken = []
        for _ in range(1 + (1 if self.quick else repeats)):
            _wait(self.device)
            began = time.perf_counter()
            run()
            _wait(self.device)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken[1:])


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
    parser.add_argument("--shapes", default="0.5B,1.5B")
    parser.add_argument("--quick", action="store_true", help="seconds; proves nothing")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder of the record (default: results/gpu)"
    )
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "torch sees no GPU: nothing was measured. `--device cpu --shapes tiny --quick` tries the script"
        )
    device, rows = torch.device(given.device), []
    output = given.output or (None if given.quick else RECORDS)
    for name in given.shapes.split(","):
        bench = Bench(name, device, given.quick)
        for row in bench.rows():
            rows.append(row)
            print(f"{row.shape}  {row.what}: {row.value:,.3g} {row.unit}  {row.detail}", flush=True)
        if output:
            _write(output, rows, device)
        del bench


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
