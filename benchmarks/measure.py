"""What the benchmarks share: the model of the reference, a tokenizer for it, clocks, and how a record is
written.

benchmarks/README.md is made from the records, results/benchmarks/NAME.json. A figure stands beside its bound
or peer from the same run, and what was asked of it stands with it; a quick run is never recorded among the
results.

Not measured here: quality, GPUs, real model sizes.
"""

import argparse
import asyncio
import json
import os
import platform
import selectors
import statistics
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "results" / "benchmarks"
VOCABULARY = 2048
END = "<|im_end|>"
TAGS = tuple(f"<{s}{name}>" for name in ("verify", "knowledge", "reasoning", "feedback") for s in ("", "/"))
NOTICES = "no consultations left request not understood agent unavailable answer"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Options:
    """How a script was called."""

    quick: bool
    repeats: int
    output: Path | None
    """Where the record goes; None: nowhere."""
    peer: str
    """The command of the peer that lives in an environment of its own; empty: without it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a table: ours, what stands beside it, and what was asked."""

    what: str
    ours: float
    unit: str
    beside: str = ""
    """Name of the bound or peer."""
    theirs: float | None = None
    ratio: float | None = None
    """As `asked` means it."""
    asked: str = ""
    passed: bool | None = None
    """None: nothing was asked of it."""


def options(name: str, arguments: Sequence[str] | None, peer: str = "") -> Options:
    """Read the command line that all scripts share; `peer` is the peer's usual command, "" without one."""
    parser = argparse.ArgumentParser(prog=f"benchmarks/{name}.py")
    parser.add_argument("--quick", action="store_true", help="a tiny size, in seconds; proves nothing")
    parser.add_argument("--repeats", type=int, default=0, help="0: the script's own number")
    parser.add_argument("--output", type=Path, help="folder of the record (default: results/benchmarks)")
    parser.add_argument("--peer", default=peer, help="command of a peer in another environment; '': without")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    output = given.output or (None if given.quick else RECORDS)
    return Options(given.quick, given.repeats, output, "" if given.quick else given.peer)


def tokenizer(end: str | None = END) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of 2,048 tokens in which each tag is one special token.

    Without `end`, nothing that is sampled ends a completion: lengths are then exact.
    """
    rng = Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(6000)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", END, "<|endoftext|>"],
    )
    backend.train_from_iterator([" ".join(words), NOTICES], trainer)
    built = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token="<|endoftext|>")
    built.add_special_tokens({"additional_special_tokens": list(TAGS)})
    built.chat_template = CHAT_TEMPLATE
    assert len(built) == VOCABULARY, len(built)
    return built


def policy(end_id: int | None = None, *, quick: bool = False) -> PreTrainedModel:
    """Return the 3.4 M model of shared/reference/engines.md: Qwen3, random weights, 4 layers, hidden 256."""
    torch.manual_seed(0)
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32 if quick else 64,
    }
    ids: dict[str, Any] = {"eos_token_id": end_id, "bos_token_id": None, "pad_token_id": None}
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64 if quick else 256,
        intermediate_size=96 if quick else 688,
        num_hidden_layers=2 if quick else 4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **heads,
        **ids,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def words(rng: Random, number: int) -> tuple[int, ...]:
    """Return random ids that are neither special tokens nor single bytes."""
    return tuple(rng.randrange(300, VOCABULARY - len(TAGS)) for _ in range(number))


@dataclass(frozen=True, slots=True)
class Clock:
    """What one run of something took."""

    wall_s: float
    cpu_s: float
    """Of this process; with one thread, what a quiet machine would take, whoever else runs beside it."""


def clocked(run: Callable[[], Any]) -> Clock:
    """Run and take the time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Clock(time.perf_counter() - wall, time.process_time() - cpu)


class FreeCore(asyncio.SelectorEventLoop):
    """An event loop with the clock of a machine with a core to itself: CPU-seconds of this process and waits.

    Nobody really waits: where nothing is ready, the clock is moved to the next timer. For coroutines that
    compute and sleep only; what another process or the network does takes no time on this clock.
    """

    def __init__(self) -> None:
        self.waited_s = 0.0
        selector = selectors.DefaultSelector()
        super().__init__(selector)
        really = selector.select

        def select(timeout: float | None = None) -> Any:
            ready = really(0 if timeout is not None else None)
            if not ready and timeout:
                self.waited_s += timeout
            return ready

        selector.select = select  # type: ignore[method-assign]

    def time(self) -> float:
        """Return the seconds of this clock."""
        return time.process_time() + self.waited_s


def on_a_free_core(work: Coroutine[Any, Any, Any]) -> tuple[Any, Clock]:
    """Run; `wall_s` is that of a machine with a core to itself."""
    loop = FreeCore()
    try:
        began, cpu = loop.time(), time.process_time()
        result = loop.run_until_complete(work)
        return result, Clock(loop.time() - began, time.process_time() - cpu)
    finally:
        loop.close()


def on_the_wall(work: Coroutine[Any, Any, Any]) -> tuple[Any, Clock]:
    """Run; `wall_s` is what the clock on the wall says."""
    results: list[Any] = []
    taken = clocked(lambda: results.append(asyncio.run(work)))
    return results[0], taken


def alternating(runs: Mapping[str, Callable[[], Clock]], repeats: int) -> dict[str, list[Clock]]:
    """Run A B A B ...: whatever else the machine does falls on all of them alike."""
    taken: dict[str, list[Clock]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(run())
    return taken


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the ratios within one round each."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def report(name: str, figures: Sequence[Figure], details: Mapping[str, Any], given: Options) -> None:
    """Print the table and write the record."""
    for f in figures:
        theirs = f"   {f.beside} {f.theirs:,.2f}" if f.theirs is not None else ""
        ratio = f"   ratio {f.ratio:.2f}" if f.ratio is not None else ""
        verdict = {True: "   passed", False: "   MISSED", None: ""}[f.passed]
        asked = f"   asked: {f.asked}" if f.asked else ""
        print(f"{f.what}: {f.ours:,.2f} {f.unit}{theirs}{ratio}{asked}{verdict}")
    if given.output is None:
        return
    record = {
        "benchmark": name,
        "quick": given.quick,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {p: metadata.version(p) for p in ("aipo", "torch", "transformers", "tokenizers")},
        "figures": [asdict(f) for f in figures],
        "details": dict(details),
    }
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
