"""Check the tests of the method: `python scripts/mutants.py [text ...]`; exit status 1 unless all are killed.

Each mutant is one mistake, made by hand, in a temporary copy of `src`; the tests of `core` and of credit and
batches run against that copy. Survivors, and patterns that stand not exactly once in their file, fail. With
texts, only mutants with one of them in file or code are run. The working tree is never touched.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "core/tokens.py": "tests/property/test_tokens.py",
    "core/advantages.py": "tests/property/test_advantages.py",
    "core/surrogates.py": "tests/unit/test_surrogates.py",
    "core/algorithms.py": "tests/unit/test_algorithms.py",
    "core/coefficients.py": "tests/unit/test_coefficients.py",
    "core/objective.py": "tests/property/test_objective.py",
    "train/algorithm.py": "tests/unit/test_algorithms.py",
    "train/batch.py": "tests/unit/test_train_batch.py",
    "train/credit.py": "tests/unit/test_experience.py",
    "core/passk.py": "tests/property/test_passk.py",
}
"""All of them judge each mutant; that of its own file, or else of the objective, comes first and alone: the
quickest way to a kill."""

GUARD = '''
"""Pytest plugin of scripts/mutants.py: few examples, the same every time, and of the copied sources only."""
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings


def pytest_configure() -> None:
    settings.register_profile("mutants", max_examples=25, derandomize=True, database=None, deadline=None)
    settings.load_profile("mutants")


def pytest_collection_finish() -> None:
    ours = [module for name, module in sys.modules.items() if name.split(".")[0] == "aipo"]
    source = Path(os.environ["MUTANT_SOURCE"])
    if not ours or not all(Path(module.__file__).is_relative_to(source) for module in ours):
        pytest.exit("aipo was not imported from the copy", returncode=9)
'''


@dataclass(frozen=True)
class Mutant:
    """One mistake: in `file`, `new` instead of `old`."""

    file: str
    old: str
    new: str


TOKENS = [
    ("if len(self.log_probs) != len(self.ids):", "if len(self.log_probs) < len(self.ids):"),
    ("            if self.log_probs:", "            if self.log_probs and not self.ids:"),
    ("log_prob <= 1e-4", "log_prob <= 0.1"),
    ('-float("inf") < log_prob', '-float("inf") <= log_prob'),
    ("or not self.segments[0].ids:", "or False:"),
    ("or self.segments[0].source is not Source.PROMPT or", "or"),
    ("for segment in self.segments[1:]):", "for segment in self.segments[2:]):"),
    ("for segment in self.segments if segment.source is source)", "for segment in self.segments)"),
    ("s.log_probs or (0.0,) * len(s.ids)", "s.log_probs"),
    ("s.log_probs or (0.0,) * len(s.ids)", "s.log_probs or (-1.0,) * len(s.ids)"),
    ("i >= stream.prompt_length and", "i > stream.prompt_length and"),
    ("i >= stream.prompt_length and", ""),
    ("range(start, end)", "range(start, end + 1)"),
    ("range(start, end)", "range(start + 1, end)"),
    ("i not in gone)", "i in gone)"),
    ("Segment(Source.PROMPT, tuple(solo_prompt_ids))", "stream.segments[0]"),
    ("Segment(Source.FEEDBACK, kept)", "Segment(Source.SCAFFOLD, kept)"),
    ("Segment(Source.FEEDBACK, tuple(solution_ids))", "Segment(Source.SCAFFOLD, tuple(solution_ids))"),
]
ADVANTAGES = [
    (" and not group[i].expert]", "]"),
    ("(FeedbackAdvantage.SIGNED, FeedbackAdvantage.SIGNED_UNIT)", "(FeedbackAdvantage.SIGNED,)"),
    (  # UNGRADED counted as 0
        "if member.verdict is not Verdict.UNGRADED]\n    reward = {i: REWARD[group[i].verdict] for",
        "if True]\n    reward = {i: REWARD.get(group[i].verdict, 0.0) for",
    ),
    ("Verdict.INCORRECT: 0.0}", "Verdict.INCORRECT: -1.0}"),
    ("STD_EPSILON = 1e-6", "STD_EPSILON = 1e-3"),
    ("if not rewards or min(rewards) == max(rewards):", "if len(rewards) < 2:"),
    ("[reward - mean for", "[mean - reward for"),
    ("if estimator is not Estimator.GROUP_NORMALISED:", "if estimator is Estimator.GROUP_NORMALISED:"),
    ("    if estimator is Estimator.BATCH_NORMALISED:", "    if estimator.over_batch:"),
    ("    if estimator is Estimator.BATCH_NORMALISED:", "    if False:"),
    ("c * len(centred) / (len(centred) - 1) for", "c for"),
    ("c * len(centred) / (len(centred) - 1) for", "c * (len(centred) - 1) / len(centred) for"),
    (  # REINFORCE++ without its baseline's batch part
        "return self in (Estimator.BATCH_NORMALISED, Estimator.GROUP_CENTRED_BATCH_NORMALISED)",
        "return self is Estimator.BATCH_NORMALISED",
    ),
    ("excess = response_tokens - (max_tokens - buffer_tokens)", "excess = response_tokens - max_tokens"),
    ("-min(1.0, excess / buffer_tokens)", "-(excess / buffer_tokens)"),
    ("-min(1.0, excess / buffer_tokens)", "min(1.0, excess / buffer_tokens)"),
    ("if total < 2 or not advantages or", "if not advantages or"),
    (
        "mean = sum(a * n for a, n in zip(advantages, tokens, strict=True)) / total",
        "mean = fmean(advantages)",
    ),
    ("** 2 * n for a, n in", "** 2 for a, n in"),
    ("strict=True)) / (total - 1)", "strict=True)) / total"),
    ("(variance + WHITEN_EPSILON) ** 0.5", "(variance + WHITEN_EPSILON)"),
    ("WHITEN_EPSILON = 1e-8", "WHITEN_EPSILON = 1e-2"),
    ("reward[i] + group[i].penalty", "reward[i]"),
    ("reward[i] + group[i].penalty", "reward[i] - group[i].penalty"),
    ("/ (len(centred) - 1)) ** 0.5", "/ len(centred)) ** 0.5"),
    ("/ (len(centred) - 1)) ** 0.5", "/ (len(centred) - 1))"),
    ("    if not split:", "    if True:"),
    ("    if not split:", "    if split:"),
    ("    if not split:", "    if False:"),
    ("return lambda _, advantage: max(0.0, advantage)", "return lambda _, advantage: min(0.0, advantage)"),
    ("return lambda _, advantage: max(0.0, advantage)", "return lambda _, advantage: abs(advantage)"),
    ("is Condition.SOLO]", "is Condition.CONSULTING]"),
    ("fmean(solo or reward.values())", "fmean(reward.values())"),
    ("fmean(solo or reward.values()) if reward else 0.0", "fmean(solo) if solo else 0.0"),
    ("max(0.0, reward[i] - baseline)", "reward[i] - baseline"),
    (
        "feedback: FeedbackAdvantage = FeedbackAdvantage.OVER_SOLO",
        "feedback: FeedbackAdvantage = FeedbackAdvantage.SIGNED",
    ),
]
PPO = "torch.minimum(ratio * advantage, clip(ratio) * advantage)"
CLIPPED = f"    ratio = token_ratio(log_p, log_p_old)\n    return {PPO}"
SEQUENCE = f"    ratio = sequence_ratio(log_p, log_p_old, mask)\n    return {PPO}"
SURROGATES = [
    (CLIPPED, CLIPPED.replace("minimum", "maximum")),
    (CLIPPED, CLIPPED.replace(PPO, "ratio * advantage")),
    (CLIPPED, CLIPPED.replace(PPO, "clip(ratio) * advantage")),
    (SEQUENCE, SEQUENCE.replace("minimum", "maximum")),
    (SEQUENCE, SEQUENCE.replace(PPO, "ratio * advantage")),
    (SEQUENCE, SEQUENCE.replace(PPO, "clip(ratio) * advantage")),
    (SEQUENCE, CLIPPED),  # GRPO by the name of GSPO
    ("clamp(1.0 - self.low, 1.0 + self.high)", "clamp(1.0 - self.high, 1.0 + self.low)"),
    ("torch.exp((log_p - log_p_old).clamp", "torch.exp((log_p_old - log_p).clamp"),
    ("torch.exp((log_p - log_p_old).clamp(max=MAX_LOG_RATIO))", "torch.exp(log_p - log_p_old)"),
    ("tokens = mask.sum(-1, keepdim=True).clamp(min=1)", "tokens = mask.shape[-1]"),
    ("torch.where(mask, log_p - log_p_old, 0.0).sum", "(log_p - log_p_old).sum"),
    ("torch.where(mask, log_p - log_p_old, 0.0).sum", "torch.where(mask, log_p_old - log_p, 0.0).sum"),
    ("mean.detach().clamp(max=MAX_LOG_RATIO) + (log_p - log_p.detach())", "mean.clamp(max=MAX_LOG_RATIO)"),
    ("mean.detach().clamp(max=MAX_LOG_RATIO) + (log_p - log_p.detach())", "log_p - log_p.detach()"),
    (
        "        ratio = sequence_ratio(log_p, log_p_old, mask)\n    else:",
        "        ratio = token_ratio(log_p, log_p_old)\n    else:",
    ),
    ("torch.where(advantage > 0, ratio", "torch.where(advantage < 0, ratio"),
    ("(ratio < 1.0 - clip.low) & (advantage < 0)", "ratio < 1.0 - clip.low"),
    ("clip(token_ratio(log_p, log_p_old)).detach() *", "clip(token_ratio(log_p, log_p_old)) *"),
    ("clip(token_ratio(log_p, log_p_old)).detach() *", "token_ratio(log_p, log_p_old).detach() *"),
    (".detach() * advantage * log_p", ".detach() * advantage * log_p.exp()"),
    ("kept = clip(ratio).detach() * torch.exp(log_p - log_p.detach())", "kept = clip(ratio)"),
    (
        "clip(ratio).detach() * torch.exp(log_p - log_p.detach())",
        "ratio.detach() * torch.exp(log_p - log_p.detach())",
    ),
    ("torch.minimum(ratio * advantage, kept * advantage)", "kept * advantage"),
    (
        "torch.minimum(ratio * advantage, kept * advantage)",
        "torch.maximum(ratio * advantage, kept * advantage)",
    ),
    ("Surrogate.PRESERVING: _preserving,", "Surrogate.PRESERVING: _clipped,"),
]
ALGORITHMS = [
    ("_EVEN, _HIGHER = Clip(0.2, 0.2), Clip(0.2, 0.28)", "_EVEN, _HIGHER = Clip(0.2, 0.2), Clip(0.28, 0.2)"),
    (
        '"2402.03300", _S.CLIPPED, _E.GROUP_NORMALISED, _A.SEQUENCE',
        '"2402.03300", _S.CLIPPED, _E.GROUP_NORMALISED, _A.TOKEN',
    ),
    ("_E.GROUP_CENTRED, _A.HORIZON", "_E.GROUP_CENTRED, _A.SEQUENCE_SUM"),
    ("_E.LEAVE_ONE_OUT, _A.SEQUENCE_SUM", "_E.GROUP_CENTRED, _A.SEQUENCE_SUM"),
    ("Clip(3e-4, 4e-4)", "Clip(0.2, 0.28)"),
    ("Clip(1.0, 4.0)", "Clip(0.2, 4.0)"),
]
COEFFICIENTS = [
    ("torch.zeros_like(log_p * advantage)", "log_p * advantage"),
    ("return clipped_surrogate(log_p, log_p_old,", "return clipped_surrogate(log_p, log_p.detach(),"),
    ("return log_p.exp() * advantage", "return log_p.detach().exp() * advantage"),
    ("torch.sigmoid(log_p - log(settings.shape))", "torch.sigmoid(log_p - log(settings.floor))"),
    ("torch.sigmoid(log_p - log(settings.shape))", "torch.sigmoid(log_p + log(settings.shape))"),
    ("log_p.exp() / log_p.detach().exp().clamp", "log_p.exp() / log_p.exp().clamp"),
    ("/ log_p.detach().exp().clamp(min=settings.floor)", "/ log_p.detach().exp().clamp(max=settings.floor)"),
    ("settings.floor) * log_p * advantage", "settings.floor) * log_p.exp() * advantage"),
    (  # the prototype's plain clamp
        "return _floored_weight(log_p, advantage, settings.floor) * one * advantage",
        "return log_p.exp().clamp(min=settings.floor) * advantage",
    ),
    ("one = torch.exp(log_p - log_p.detach())", "one = torch.exp(log_p.detach() - log_p)"),
    ("one = torch.exp(log_p - log_p.detach())", "one = log_p.exp() / log_p.exp().detach()"),  # 0 / 0
    ("return log_p * advantage", "return log_p.exp() * advantage"),
    ("    p = log_p.detach().exp()\n", "    p = log_p.exp()\n"),
    (
        "torch.where(advantage > 0, p.clamp(min=floor), p)",
        "torch.where(advantage < 0, p.clamp(min=floor), p)",
    ),
    ("torch.where(advantage > 0, p.clamp(min=floor), p)", "p.clamp(min=floor)"),
    ("torch.where(advantage > 0, p.clamp(min=floor), p)", "p"),
    ("p.clamp(min=floor), p)", "p.clamp(min=floor), torch.zeros_like(p))"),
    ("Coefficient.STOPGRAD: _stopgrad,", "Coefficient.STOPGRAD: _floored,"),
    ("weight = torch.exp(log_p.detach() - log_p_old)", "weight = torch.exp(log_p.detach() + log_p_old)"),
    ("weight = torch.exp(log_p.detach() - log_p_old)", "weight = torch.exp(log_p - log_p_old)"),
    (".clamp(max=settings.truncation)", ".clamp(min=settings.truncation)"),
    ("term = torch.where(advantage < 0, _unit", "term = torch.where(advantage > 0, _unit"),
    ("settings.unit_below_zero and settings.kind is not Coefficient.MASKED", "settings.unit_below_zero"),
]
OBJECTIVE = [
    (
        "self.coefficient.kind is not Coefficient.MASKED and self.feedback_weight > 0",
        "self.feedback_weight > 0",
    ),
    ("is not Coefficient.MASKED and self.feedback_weight > 0", "is not Coefficient.MASKED"),
    ("self.coefficient.kind is Coefficient.RATIO", "self.coefficient.kind is not Coefficient.RATIO"),
    (
        "surrogate_term(log_p, batch.log_p_old, batch.policy_advantage",
        "surrogate_term(log_p, batch.log_p_old, batch.feedback_advantage",
    ),
    (
        "batch.policy_advantage, mask, settings.surrogate)",
        "batch.policy_advantage, batch.attended, settings.surrogate)",
    ),
    ("torch.where(mask | batch.feedback_mask, log_p, 0.0)", "torch.where(mask, log_p, 0.0)"),
    ("torch.where(mask, policy, 0.0)", "torch.where(batch.feedback_mask, policy, 0.0)"),
    ("torch.where(mask, policy, 0.0)", "policy"),
    ("torch.where(batch.feedback_mask, feedback, 0.0)", "torch.where(batch.policy_mask, feedback, 0.0)"),
    ("torch.where(batch.feedback_mask, feedback, 0.0)", "feedback"),
    (
        "feedback_term(log_p, batch.log_p_old, batch.feedback_advantage",
        "feedback_term(log_p, batch.log_p_old, batch.policy_advantage",
    ),
    ("total = total + settings.feedback_weight *", "total = total +"),
    ("total = total + settings.feedback_weight *", "total = total - settings.feedback_weight *"),
    ("return -(total * batch.weight).sum()", "return (total * batch.weight).sum()"),
    ("return -(total * batch.weight).sum()", "return -(total * batch.weight).mean()"),
    ("return -(total * batch.weight).sum()", "return -total.sum() / batch.attended.sum()"),
    (
        "credited = feedback & (batch.feedback_advantage > 0)",
        "credited = feedback & (batch.policy_advantage > 0)",
    ),
    ("(delta.exp() - 1 - delta)", "(delta.exp() - 1 + delta)"),
    ("policy, settings.surrogate) & policy", "policy, settings.surrogate)"),
    ("torch.where(credited, p, 0.0)", "torch.where(feedback, p, 0.0)"),
]
BATCH = [
    ("new if source is Source.FEEDBACK else old", "new if source is Source.POLICY else old"),
    ("return self.sources == Source.POLICY", "return self.sources != Source.FEEDBACK"),
    ("return self.sources == Source.FEEDBACK", "return self.sources >= Source.FEEDBACK"),
    ("if feedback_trained else 0)", "if not feedback_trained else 0)"),
    ("stream.count(Source.POLICY) +", "len(stream) +"),
    ("if aggregation is Aggregation.TOKEN_MEAN:", "if aggregation is not Aggregation.TOKEN_MEAN:"),
    ("1.0 / max(1, sum(counts))", "1.0 / max(1, len(counts))"),
    ("1.0 / max(1, sum(counts))", "1.0 / max(1, sum(map(len, streams)))"),
    ("sequences = sum(count > 0 for count in counts)", "sequences = len(counts)"),
    ("1.0 / (sequences * divisor)", "1.0 / sequences"),
    ("1.0 / (sequences * divisor)", "1.0 / divisor"),
    ("Aggregation.SEQUENCE_MEAN: counts", "Aggregation.SEQUENCE_MEAN: [len(stream) for stream in streams]"),
    ("Aggregation.SEQUENCE_SUM: [1]", "Aggregation.SEQUENCE_SUM: [horizon_tokens]"),
    ("Aggregation.HORIZON: [horizon_tokens]", "Aggregation.HORIZON: [max(counts)]"),
    ("Source.SCAFFOLD, torch.long)", "Source.POLICY, torch.long)"),
    ("pad_id, torch.long)", "0, torch.long)"),
    ("< lengths.unsqueeze", "<= lengths.unsqueeze"),
    ("policy_advantage=per_row[:, 0]", "policy_advantage=per_row[:, 1]"),
    ("feedback_advantage=per_row[:, 1]", "feedback_advantage=per_row[:, 0]"),
    ("list(row.log_p_old)", "list(row.stream.log_probs)"),
]
TRAIN_ALGORITHM = [
    ("clip=Clip(low, high)", "clip=Clip(high, low)"),
    ("named.clip.low if settings.clip_low is None", "named.clip.low if not settings.clip_low"),
    ("named.clip.high if settings.clip_high is None", "named.clip.low if settings.clip_high is None"),
    ("Estimator(settings.estimator) if settings.estimator else named.estimator", "named.estimator"),
    ("Aggregation(settings.aggregation) if settings.aggregation else named.aggregation", "named.aggregation"),
    (
        "surrogate = SurrogateSettings(base.surrogate, base.clip)",
        "surrogate = SurrogateSettings(base.surrogate)",
    ),
]
TRAIN_CREDIT = [
    ("length = len(stream) - stream.prompt_length if", "length = len(stream) if"),
    ("Condition.SOLO, expert=True)", "Condition.CONSULTING, expert=True)"),
    ("Condition.SOLO, expert=True)", "Condition.SOLO)"),
    ("estimator=base_algorithm(algorithm).estimator", "estimator=Estimator.GROUP_NORMALISED"),
    ("split_baselines=algorithm.split_baselines", "split_baselines=True"),
    ("FeedbackAdvantage(algorithm.feedback_advantage)", "FeedbackAdvantage.OVER_SOLO"),
    ("algorithm.stripped_copies and advantage.feedback > 0", "advantage.feedback > 0"),
    ("advantage.feedback > 0 and", "advantage.feedback >= 0 and"),
    ("Advantage(0.0, advantage.feedback)", "Advantage(0.0, advantage.policy)"),
    ("advantage.policy if sampled else 1.0", "advantage.policy"),
    ("advantage.policy if sampled else 1.0", "advantage.feedback if sampled else 1.0"),
    ("advantage.policy if sampled else 1.0", "1.0"),
    ("Advantage(0.0, credit)", "Advantage(credit, 0.0)"),
    ("c.outcome is ConsultOutcome.ANSWERED", "c.outcome is not ConsultOutcome.EMPTY"),
    ("answered = any(", "answered = all("),
    ("member.grade.verdict is Verdict.CORRECT and answered", "answered"),
    ("algorithm.agent_token_price if mixed else 0.0", "algorithm.agent_token_price"),
    ("if m.condition is Condition.CONSULTING}", "}"),
    ("- price * asked", "+ price * asked"),
    ("heads = seed_of(*seed_path,", "heads = seed_of("),
    (
        "if member.grade.verdict is Verdict.UNGRADED:\n            return member",
        "if False:\n            return member",
    ),
    ("self.advantage.policy != 0 or", "self.advantage.policy != 0 and"),
]
TRAIN_BATCH = [
    ("if base.estimator.over_batch:", "if False:"),
    (
        "for group in credits for c in group if c.stream.count(Source.POLICY)]",
        "for group in credits for c in group]",
    ),
    ("horizon_tokens=max_response_tokens", "horizon_tokens=1"),
    ("credits[part * len(credits) // number :", "credits["),
    ("feedback_trained=objective_settings(algorithm).feedback_trained", "feedback_trained=True"),
    ("(len(parts[-1]) + 1) * len(row.stream)", "len(parts[-1]) * len(row.stream)"),
    ("sorted(rows, key=lambda row: len(row.stream))", "rows"),
]
PASSK = [
    ("1.0 if n - c < k", "1.0 if n - c <= k"),
    ("range(n - c + 1, n + 1)", "range(n - c, n)"),
]
FILES = {
    "core/tokens.py": TOKENS,
    "core/advantages.py": ADVANTAGES,
    "core/surrogates.py": SURROGATES,
    "core/algorithms.py": ALGORITHMS,
    "core/coefficients.py": COEFFICIENTS,
    "core/objective.py": OBJECTIVE,
    "core/batch.py": BATCH,
    "train/algorithm.py": TRAIN_ALGORITHM,
    "train/batch.py": TRAIN_BATCH,
    "train/credit.py": TRAIN_CREDIT,
    "core/passk.py": PASSK,
}
MUTANTS = [Mutant(file, old, new) for file, pairs in FILES.items() for old, new in pairs]


def tests_pass(folder: Path, tests: Collection[str]) -> bool:
    """Return whether the tests pass on the copy in `folder`.

    Raises `RuntimeError` when they could not judge: the copy cannot be imported, or something else was.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}",
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutant as long as the original would be taken for it
        "MUTANT_SOURCE": str(folder / "src"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "mutant_guard", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *sorted(tests)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if run.returncode not in (0, 1):  # 0: all passed; 1: some failed
        raise RuntimeError(f"pytest ended with {run.returncode}:\n{run.stdout[-1500:]}{run.stderr[-500:]}")
    return run.returncode == 0


def verdict(mutant: Mutant, folder: Path) -> str:
    """Make the mistake in the copy, run the tests, undo it; return what came of it."""
    path = folder / "src" / "aipo" / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return f"BROKEN (the pattern stands {text.count(mutant.old)} times in the file)"
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        own = {TESTS.get(mutant.file, TESTS["core/objective.py"])}
        survived = tests_pass(folder, own) and tests_pass(folder, set(TESTS.values()) - own)
        return "SURVIVED" if survived else "killed"
    except RuntimeError as error:
        return f"BROKEN ({error})"
    finally:
        path.write_text(text, encoding="utf-8")


def main(texts: list[str]) -> int:
    """Run the mutants whose file or code holds one of the texts, or all; return the exit status."""
    chosen = [m for m in MUTANTS if not texts or any(t in f"{m.file}\n{m.old}\n{m.new}" for t in texts)]
    with tempfile.TemporaryDirectory(prefix="aipo-mutants-") as name:
        folder = Path(name).resolve()
        shutil.copytree(
            ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
        (folder / "mutant_guard.py").write_text(GUARD, encoding="utf-8")
        if not tests_pass(folder, TESTS.values()):
            print("the tests fail without any mutant: nothing can be said of them")
            return 1
        killed = 0
        for mutant in chosen:
            result = verdict(mutant, folder)
            killed += result == "killed"
            print(f"{result}  {mutant.file}  {mutant.old!r} -> {mutant.new!r}", flush=True)
    print(f"{killed} of {len(chosen)} mutants killed")
    return 0 if chosen and killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
