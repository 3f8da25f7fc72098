"""`aipo plan` beside what was measured: predicted and measured seconds of small runs on a CPU.

It checks the simulation and the update's formula. Two constants of this machine, seconds of a
decode step and of a row in it, are fitted where agents answer at once; what is then predicted is the time
of other numbers of rollouts and of agents with latencies. Token counts and latencies are those of the run
itself: the schedule is predicted, not the policy. No figure here says anything of GPUs.

Then timings.jsonl of short training runs of the policy of `aipo warmstart recipes/tiny.toml` (made first, or
given by `--policy FOLDER`): the seconds of a FLOP and of a mini-batch of the update come from two sizes,
others are predicted. Those runs take their clock from the process's CPU-seconds, since others share the
machine and their agents answer at once.

One call writes the whole record. Each measurement is kept in `--parts` (default: build/planning-parts) until
then, so that the same call again goes on where one was cut short.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from aipo.core.seeds import seed_of
from aipo.core.types import Source
from aipo.planning.engine import EngineRates
from aipo.planning.estimate import OPTIMISER_TRAFFIC, update_of
from aipo.planning.hardware import Cluster, Efficiency, Gpu
from aipo.planning.model import ModelShape, read_shape
from aipo.planning.setting import AgentService, Setting, Training
from aipo.planning.simulation import Phase, simulate
from aipo.planning.workload import Consultation, Trajectory, Turn
from aipo.rollout.episode import Rollout, RolloutSpec
from consulting import Bench, Slow, bench
from measure import RECORDS, ROOT, Figure, on_a_free_core, options, report, tokenizer
from parts import Parts

LIKE_OVERLAP = (64, 8, 1.0)
CALIBRATED = ((16, 2, 0.0), (64, 8, 0.0))
"""Rollouts, groups, speed of the agents: 0 answers at once, 1 takes 0.3 s (median), 2 twice as long."""
PREDICTED = (LIKE_OVERLAP, (32, 4, 0.0), (32, 4, 1.0), (64, 8, 2.0), (128, 16, 1.0))
REPEATS = 3
WITHIN = 0.2
"""A prediction is asked to be this close."""
TRAIN_TIMEOUT_S = 900.0
WARMSTART_TIMEOUT_S = 7200.0
PARTS = ROOT / "build" / "planning-parts"
MEASURES = (Path(__file__), *(Path(__file__).with_name(name) for name in ("consulting.py", "measure.py")))
"""What parts depend on."""
STEPS = 10
SIZES = {
    "24 x 8": [],
    "8 x 8": ["train.prompts_per_step=8"],
    "48 x 8": ["train.prompts_per_step=48"],
    "24 x 16": ["rollout.rollouts_per_prompt=16"],
    "24 x 8, solo": ["rollout.solo_fraction=1.0"],
}
"""Of `aipo train recipes/tiny.toml`; the first two calibrate, the others are predicted."""
COMMON = [
    f"train.steps={STEPS}",
    "train.record_rollouts_every_steps=1",
    "train.checkpoint_every_steps=100",
    "algorithm.stripped_copies=false",
    "rollout.slots=512",
]
DRIVER = (
    "import sys, time, types, aipo.training.loop as loop\n"
    "loop.time = types.SimpleNamespace(monotonic=time.process_time)\n"
    "from aipo.cli.main import app\napp()\n"
)
INSTANT = AgentService(servers=None, instant=True)
WAITING = AgentService(servers=None, tokens_s=0)


@dataclass(frozen=True, slots=True)
class Observed:
    """What was run and how long it took."""

    trajectories: list[Trajectory]
    seconds: float

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> "Observed":
        """Return what `asdict` made plain."""
        return cls([_trajectory(each) for each in table["trajectories"]], table["seconds"])


def _trajectory(table: dict[str, Any]) -> Trajectory:
    turns = [
        Turn(turn["policy_tokens"], Consultation(**turn["consultation"]) if turn["consultation"] else None)
        for turn in table["turns"]
    ]
    return Trajectory(table["group"], table["prompt_tokens"], tuple(turns))


@dataclass(frozen=True, slots=True)
class TrainedStep:
    """A step of a training run."""

    rollouts: Observed
    update_s: float
    teaches: list[bool]
    """Of each rollout: whether it has an advantage."""


def lockstep(
    prompt: int, group: int, pieces: Sequence[tuple[bool, int]], latencies: Iterator[float]
) -> Trajectory:
    """Return a trajectory for our in-process engine, which feeds short feedback one token a step.

    `pieces` are (written by the policy?, tokens) in turn: inserted tokens count as steps of the next turn.
    """
    turns: list[Turn] = []
    pending = 0
    for position, (own, size) in enumerate(pieces):
        pending += size
        if own and any(not later for later, _ in pieces[position + 1 :]):
            turns.append(Turn(pending, Consultation("agent", next(latencies), 0)))
            pending = 0
    return Trajectory(group, prompt, (*turns, Turn(pending)))


def of_bench(
    work: Bench, specs: Sequence[RolloutSpec], made: Sequence[Rollout], agent: Slow
) -> list[Trajectory]:
    """Return what rollouts of the overlap benchmark were."""
    result = []
    for index, (spec, rollout) in enumerate(zip(specs, made, strict=True)):
        prompt = rollout.stream.prompt_length
        sources = [source is Source.POLICY for source in rollout.stream.sources[prompt:]]
        pieces = [(own, len(list(run))) for own, run in groupby(sources)]
        seeds = (seed_of(spec.seed, "consultation", i) for i in range(len(pieces)))
        latencies = (agent.waited_s.get(seed, 0.0) for seed in seeds)
        result.append(lockstep(prompt, index % work.groups, pieces, latencies))
    return result


def observe(setting: tuple[int, int, float], quick: bool) -> Observed:
    """Run the overlap benchmark's rollouts in one size, on the clock of a core to itself."""
    rollouts, groups, speed = setting
    work = bench(tokenizer(), rollouts=rollouts, groups=groups, quick=quick)
    asyncio.run(work.run(Slow(0.0), work.specs()[:2]))  # whatever is built on first use
    specs, agent = work.specs(), Slow(speed)
    made, clock = on_a_free_core(work.run(agent))
    return Observed(of_bench(work, specs, made, agent), clock.wall_s)


def run(observed: Observed, rates: EngineRates, service: AgentService = WAITING) -> Phase:
    """Simulate what was run."""
    return simulate(observed.trajectories, replace(rates, max_sequences=10**6), 1, service)


def calibrated(first: Observed, second: Observed) -> EngineRates:
    """Return the two constants with which both take what they took: a step's, and a row's in it."""
    unit = EngineRates(overhead_s=1.0)
    (s1, r1), (s2, r2) = [
        (p.wall_s, p.decoded_tokens + p.prefilled_tokens)
        for p in (run(each, unit, INSTANT) for each in (first, second))
    ]
    determinant = s1 * r2 - s2 * r1
    step = (first.seconds * r2 - second.seconds * r1) / determinant
    row = (s1 * second.seconds - s2 * first.seconds) / determinant
    return rates_of(step, row)


def rates_of(step_s: float, row_s: float) -> EngineRates:
    """Return rates of a machine that is bound by products; an inserted token is a row of a step."""
    return EngineRates(overhead_s=step_s, product_per_sequence_s=row_s, prefill_per_token_s=row_s)


def name_of(setting: tuple[int, int, float]) -> str:
    """Return a setting in words."""
    rollouts, _, speed = setting
    return f"{rollouts} rollouts, " + (f"agents of {0.3 * speed:g} s" if speed else "agents at once")


def figure(what: str, predicted: float, measured: float, *, asked: bool = True) -> Figure:
    """Return a row: predicted beside measured."""
    ratio = predicted / measured
    passed = abs(ratio - 1) <= WITHIN if asked else None
    text = f"within {WITHIN:.0%}" if asked else ""
    return Figure(what, predicted, "s predicted", "measured", measured, ratio, text, passed)


def observed_again(parts: Parts | None, setting: tuple[int, int, float], repeat: int) -> Observed:
    """Return `observe` of a full size, kept among the parts; of a quick one without parts."""
    if parts is None:
        return observe(setting, quick=True)
    name = f"rollouts-{'-'.join(format(number, 'g') for number in setting)}-{repeat}"
    return Observed.from_table(parts.get(name, lambda: asdict(observe(setting, quick=False))))


def rollouts_checked(repeats: int, parts: Parts | None) -> tuple[list[Figure], dict[str, object]]:
    """Calibrate, predict, and predict the recorded overlap benchmark from its own decoding time."""
    quick = parts is None
    settings = ((4, 2, 0.0), (8, 2, 0.0), (8, 2, 0.05)) if quick else (*CALIBRATED, *PREDICTED)
    rounds = [[observed_again(parts, setting, i) for setting in settings] for i in range(repeats)]
    merged = [
        Observed(runs[-1].trajectories, statistics.median(r.seconds for r in runs))
        for runs in zip(*rounds, strict=True)
    ]
    rates = calibrated(merged[0], merged[1])
    figures = [
        figure(name_of(setting), run(observed, rates).wall_s, observed.seconds)
        for setting, observed in list(zip(settings, merged, strict=True))[2:]
    ]
    details: dict[str, object] = {
        "step_s": rates.overhead_s,
        "row_s": rates.product_per_sequence_s,
        "measured_s": {name_of(s): [round(r[i].seconds, 3) for r in rounds] for i, s in enumerate(settings)},
    }
    if not quick:
        figures.append(recorded_overlap(merged[2], rates))
    return figures, details


def recorded_overlap(observed: Observed, rates: EngineRates) -> Figure:
    """Predict results/benchmarks/overlap.json from its time without pauses: both constants take its scale."""
    record = json.loads((RECORDS / "overlap.json").read_text())
    rounds = record["details"]["core to itself"]
    waited = sum(
        t.consultation.latency_s for each in observed.trajectories for t in each.turns if t.consultation
    )
    tokens = sum(each.policy_tokens for each in observed.trajectories)
    if abs(waited - rounds[-1]["waited_s"]) > 0.01 or abs(tokens - rounds[-1]["tokens"]) > 100:
        raise SystemExit(f"other rollouts than in overlap.json: {waited:.1f} s of latency, {tokens} tokens")
    scale = statistics.median(r["decode_wall_s"] for r in rounds) / run(observed, rates, INSTANT).wall_s
    scaled = rates_of(rates.overhead_s * scale, rates.product_per_sequence_s * scale)
    measured = statistics.median(r["wall_s"] for r in rounds)
    return figure("overlap.json: 64 rollouts, agents of 0.3 s", run(observed, scaled).wall_s, measured)


def aipo(timeout_s: float, *arguments: str) -> None:
    """Run a command of this package with recipes/tiny.toml, on one thread. Raises `SystemExit`."""
    verb, *rest = arguments
    recipe = str(ROOT / "recipes" / "tiny.toml")
    command = [sys.executable, "-c", DRIVER, verb, recipe, "run.threads=1", *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def warmstarted(parts: Parts) -> Path:
    """Return the policy of recipes/tiny.toml, made at the first call."""
    output = parts.folder / "warmstart"

    def make() -> str:
        shutil.rmtree(output, ignore_errors=True)
        aipo(WARMSTART_TIMEOUT_S, "warmstart", f"run.output={output}")
        return str(output / "policy")

    return Path(parts.get("warmstart", make))


def trained(parts: Parts, size: str, policy: Path) -> list[TrainedStep]:
    """Run `aipo train` in one of `SIZES`; return each step but the first."""
    name = "train-" + "".join(c if c.isalnum() else "-" for c in size)
    output = parts.folder / name

    def make() -> str:
        shutil.rmtree(output, ignore_errors=True)
        given = [f"policy.model={policy}", f"run.output={output}", *COMMON, *SIZES[size], "--no-cache"]
        aipo(TRAIN_TIMEOUT_S, "train", *given)
        return str(output)

    return steps_of(Path(parts.get(name, make)))


def steps_of(output: Path) -> list[TrainedStep]:
    """Return each step of a run but the first."""
    lines = [json.loads(line) for line in (output / "timings.jsonl").read_text().splitlines()]
    records = [json.loads(line) for line in (output / "rollouts.jsonl").read_text().splitlines()]
    steps = []
    for line in lines:
        if line["step"] == 1 or "update_s" not in line:
            continue
        of_step = [r for r in records if r["step"] == line["step"] and r.get("segments")]
        rollouts = Observed([of_record(r) for r in of_step], line["rollout_s"])
        steps.append(TrainedStep(rollouts, line["update_s"], teaching(of_step)))
    return steps


def of_record(record: dict[str, Any]) -> Trajectory:
    """Return what a line of rollouts.jsonl was."""
    prompt, *rest = record["segments"]
    pieces = [(s["source"] == "policy", len(s["ids"])) for s in rest]
    latencies = iter([0.0] * len(pieces))
    return lockstep(len(prompt["ids"]), hash(record["problem"]), pieces, latencies)


def teaching(records: Sequence[dict[str, Any]]) -> list[bool]:
    """Say of each rollout whether it has a backward pass in our trainer.

    Those that have an advantage do, and all of a mini-batch in which none has.

    POLICY tokens have one where verdicts differ within problem and condition, FEEDBACK tokens where a rollout
    is better than the problem's solo ones (`over_solo`).
    """
    rewards: dict[tuple[str, str], list[bool]] = {}
    for r in records:
        rewards.setdefault((r["problem"], r["condition"]), []).append(r["verdict"] == "correct")
    result = []
    for r in records:
        own, solo = rewards[r["problem"], r["condition"]], rewards.get((r["problem"], "solo"), [True])
        helped = any(s["source"] == "feedback" for s in r["segments"]) and r["verdict"] == "correct"
        result.append(len(set(own)) > 1 or (helped and not all(solo)))
    count = Training().minibatches
    for part in range(count):
        cut = slice(part * len(result) // count, (part + 1) * len(result) // count)
        if not any(result[cut]):
            result[cut] = [True] * len(result[cut])
    return result


def update_s(policy: ModelShape, step: TrainedStep, flops: float, minibatch_s: float) -> float:
    """Return what the planner's formula says of an update on a machine with these two constants."""
    bandwidth = OPTIMISER_TRAFFIC * policy.parameters / minibatch_s if minibatch_s else 1e30
    machine = Cluster(
        Gpu(
            name="cpu",
            bf16_flops=flops,
            memory_bytes=1e12,
            hbm_bytes_s=bandwidth,
            nvlink_bytes_s=1e12,
            network_bytes_s=1e12,
            pcie_bytes_s=1e12,
        ),
        1,
    )
    layout = Training(gradient_checkpointing=False, recompute_log_probs=False)
    ideal = Efficiency(update=1, memory=1)
    setting = Setting(model=policy, cluster=machine, training=layout, efficiency=ideal)
    parts = [
        [t for t, teaches in zip(step.rollouts.trajectories, step.teaches, strict=True) if teaches is wanted]
        for wanted in (True, False)
    ]
    taught, rest = (update_of(setting, part) if part else None for part in parts)
    total = (taught.total_s if taught else 0.0) + (rest.compute_s / 3 if rest else 0.0)
    return total


def update_constants(policy: ModelShape, first: TrainedStep, second: TrainedStep) -> tuple[float, float]:
    """Return FLOP/s and the fixed seconds of a mini-batch, with which both take what they took."""
    f1, f2 = (update_s(policy, step, 1.0, 0.0) for step in (first, second))
    each = (first.update_s - second.update_s) / (f1 - f2)
    fixed = (first.update_s - f1 * each) / Training().minibatches
    return 1.0 / each, max(0.0, fixed)


def training_checked(parts: Parts, policy: Path) -> tuple[list[Figure], dict[str, object]]:
    """Calibrate on the first two sizes of short training runs, predict the others.

    Of each size the fastest step counts: whatever else the machine does can only slow one down.
    """
    measured = {size: trained(parts, size, policy) for size in SIZES}
    sampled = {
        size: min((s.rollouts for s in steps), key=lambda o: o.seconds) for size, steps in measured.items()
    }
    updated = {size: min(steps, key=lambda s: s.update_s) for size, steps in measured.items()}
    first, second, *others = SIZES
    rates = calibrated(sampled[first], sampled[second])
    shape = read_shape(policy / "config.json")
    flops, fixed = update_constants(shape, updated[first], updated[second])
    figures = []
    for size in others:
        rollouts, step = sampled[size], updated[size]
        figures.append(figure(f"rollouts of {size}", run(rollouts, rates).wall_s, rollouts.seconds))
        figures.append(figure(f"update of {size}", update_s(shape, step, flops, fixed), step.update_s))
    details = {
        "update_flops": flops,
        "minibatch_s": fixed,
        "step_s": rates.overhead_s,
        "row_s": rates.product_per_sequence_s,
        "rollout_s": {k: [round(s.rollouts.seconds, 3) for s in steps] for k, steps in measured.items()},
        "update_s": {k: [round(s.update_s, 3) for s in steps] for k, steps in measured.items()},
        "teaching_share": {
            k: [round(statistics.fmean(s.teaches), 3) for s in steps] for k, steps in measured.items()
        },
    }
    return figures, details


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not yet among the parts, and predict."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--policy", type=Path, help="folder of a warm-started leg-counting policy")
    parser.add_argument("--parts", type=Path, default=PARTS, help="folder of what is measured so far")
    own, rest = parser.parse_known_args(arguments)
    given = options("planning", rest)
    if given.quick:
        figures, details = rollouts_checked(given.repeats or 1, None)
        report("planning", figures, {"rollouts": details}, given)
        return
    parts = Parts(own.parts.resolve(), MEASURES, f"policy {own.policy}")
    figures, details = rollouts_checked(given.repeats or REPEATS, parts)
    more, of_training = training_checked(parts, (own.policy or warmstarted(parts)).resolve())
    measured = {"rollouts": details, "training": of_training, "measured_from_to": parts.dates()}
    report("planning", figures + more, measured, given)
    parts.remove()


if __name__ == "__main__":
    main()
