"""What the sides of step.py and step_smollm2.py share: the work, and how they take turns.

On the wire between a benchmark and a side, a line in is a step to make, a line out is what the last one took.
A step's clock runs from one turn to the next, so nothing that a trainer does between two steps is left out.

No completion can end early: the tokenizer's end token has an id that the model does not have.
"""

import json
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import IO, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from measure import VOCABULARY, Clock, tokenizer, words

PROMPTS, ROLLOUTS, PROMPT_WORDS = 2, 8, 24
LEARNING_RATE = 1e-5
NEVER = "<|never|>"
MARK = "TURN "
TURN_TIMEOUT_S = 1200.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A Qwen3 and how much it writes."""

    hidden: int
    layers: int
    intermediate: int
    head: int
    new_tokens: int

    @property
    def capacity(self) -> int:
        """Tokens of a prompt and its completion; a prompt's words may be cut differently once joined."""
        return 3 * PROMPT_WORDS + self.new_tokens


SHAPES = {
    "0.43 M": Shape(96, 2, 304, 24, 128),
    "3.2 M": Shape(256, 4, 616, 64, 64),
    "25 M": Shape(512, 8, 1440, 64, 128),
}
TINY = Shape(32, 2, 48, 8, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a side is told when it is started."""

    folder: str
    """Holds `policy`, a Hugging Face folder, and `problems.jsonl`; a side may write to `run` in it."""
    new_tokens: int
    capacity: int
    """Tokens of the longest prompt and a completion."""
    prompts: int = PROMPTS
    rollouts: int = ROLLOUTS
    system: str = ""
    """The system message, without which there is none."""
    peer_batch: int = 0
    """Sequences of a pass of TRL's (per_device_train_batch_size); 0: all of a step."""
    consulting: bool = False
    """Whether `system` is the packaged prompt that offers the three agents; nobody asks one here."""

    @property
    def sequences(self) -> int:
        """Rollouts of a step."""
        return self.prompts * self.rollouts

    @classmethod
    def given(cls) -> "Work":
        """Read it from the command line; one thread from here on."""
        torch.set_num_threads(1)
        return cls(**json.loads(sys.argv[1]))

    def problems(self) -> list[str]:
        """Return the users' turns."""
        lines = (Path(self.folder) / "problems.jsonl").read_text().splitlines()
        return [json.loads(line)["problem"] for line in lines]

    def chats(self) -> list[list[dict[str, str]]]:
        """Return the prompts as messages."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [[*first, {"role": "user", "content": text}] for text in self.problems()]


def model_of(shape: Shape) -> Qwen3Config:
    """Return the configuration of a model whose completions cannot end early."""
    heads = shape.hidden // shape.head
    ids: dict[str, Any] = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=shape.head,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        **ids,
    )


def prepare(folder: Path, shape: Shape) -> tuple[Work, int]:
    """Write the policy and the problems; return the work and the policy's number of parameters."""
    tokens = tokenizer(end=None)
    tokens.add_special_tokens({"eos_token": NEVER})
    assert tokens.eos_token_id == VOCABULARY, "the end must be no token of the model"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model_of(shape))
    model.save_pretrained(folder / "policy")
    tokens.save_pretrained(folder / "policy")
    write_problems(folder, _problems(tokens))
    work = Work(folder=str(folder), new_tokens=shape.new_tokens, capacity=shape.capacity)
    return work, sum(p.numel() for p in model.parameters())


def write_problems(folder: Path, texts: Sequence[str]) -> None:
    """Write the users' turns as every side reads them."""
    rows = [{"problem": text, "answer": "none"} for text in texts]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _problems(tokens: PreTrainedTokenizerFast) -> list[str]:
    """Return texts whose prompts have equally many tokens, so that nobody pads."""
    by_length: dict[int, list[str]] = {}
    for seed in range(100):
        text = str(tokens.decode(list(words(Random(seed), PROMPT_WORDS)))).strip()
        same = by_length.setdefault(len(tokens.encode(text, add_special_tokens=False)), [])
        same.append(text)
        if len(same) == PROMPTS:
            return same
    raise AssertionError("no two texts of the same length")


class Turns:
    """The side's end of the wire."""

    def __init__(self) -> None:
        self._out, self._begun = sys.stdout, Clock(0.0, 0.0)
        sys.stdout = sys.stderr  # whatever else is printed stays off the wire
        self._loaded_mb = 0.0

    def wait(self, note: dict[str, Any] | None = None) -> None:
        """Say what the step took that ends here, and wait for the next one. It may end the process."""
        taken = Clock(time.perf_counter() - self._begun.wall_s, time.process_time() - self._begun.cpu_s)
        if not self._loaded_mb:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew here
            self._loaded_mb = _status_mb("VmRSS")
        memory = {"loaded_mb": self._loaded_mb, "peak_mb": _status_mb("VmHWM")}
        print(MARK + json.dumps({**asdict(taken), **memory, **(note or {})}), file=self._out, flush=True)
        if not sys.stdin.readline():
            raise SystemExit(0)
        self._begun = Clock(time.perf_counter(), time.process_time())


class Side:
    """step.py's end: a process that makes one step at a time."""

    def __init__(
        self, command: Sequence[str], work: Work, log: IO[bytes], environment: dict[str, str]
    ) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [*command, json.dumps(asdict(work))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
        )
        self._turn()

    def step(self) -> dict[str, Any]:
        """Have one step made. Raises `SystemExit` for a side that has ended or takes too long."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._turn()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(10.0)

    def _turn(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], TURN_TIMEOUT_S)
        line = self._process.stdout.readline().decode() if ready else ""
        if not line.startswith(MARK):
            self.close()
            said = Path(self._log.name).read_text(errors="replace")[-2000:]
            raise SystemExit(f"{self._process.args!r} made no step: {line!r}\n{said}")
        turn: dict[str, Any] = json.loads(line.removeprefix(MARK))
        return turn


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/self/status has no {name}: this needs Linux")
