"""A dataclass with more than three fields is built by keyword, so that a new field moves no other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import aipo

SOURCE = Path(aipo.__file__).parent
MOST_POSITIONAL = 3
NOT_YET: dict[str, set[str]] = {
    "agents/base.py": {"AgentQuery", "AgentReply", "Usage"},
    "agents/cache.py": {"CachedAgent"},
    "agents/local.py": {"LocalAgent"},
    "agents/prompting.py": {"AgentPrompt"},
    "agents/remote.py": {"ChatSampling", "Endpoint", "RemoteAgent"},
    "assembly/canary.py": {"Tried"},
    "assembly/parts.py": {"Parts"},
    "cli/machine.py": {"Finding"},
    "config/layers.py": {"Layers"},
    "engines/base.py": {"Completion", "GenerationRequest", "Sampling"},
    "engines/transformers.py": {"_Row"},
    "engines/vllm_facts.py": {"ServerFacts"},
    "engines/vllm_server.py": {"ServerPlan"},
    "evaluation/records.py": {"EvaluationRecord", "ProblemResult"},
    "grading/code_tests.py": {"Expected"},
    "grading/sandbox/base.py": {"Run"},
    "grading/sandbox/process.py": {"_Watch"},
    "integrations/verl/about.py": {"About"},
    "integrations/verl/credit.py": {"RowCredit", "RowFacts"},
    "integrations/verl/rows.py": {"StepRow"},
    "planning/hardware.py": {"Gpu"},
    "planning/model.py": {"ModelShape"},
    "report/page.py": {"Written"},
    "report/scan.py": {"Scan"},
    "rollout/asking.py": {"Answer"},
    "rollout/episode.py": {"ConsultContext", "Consultation", "Rollout", "RolloutSpec", "_ProcessedReply"},
    "rollout/group.py": {"Group", "GroupShape", "MemberRollout", "Prompts", "Sampler"},
    "tasks/base.py": {"Problem"},
    "tasks/benchmarks/benchmark.py": {"Part", "Row"},
    "tasks/benchmarks/gym_tasks.py": {"GymTask"},
    "tasks/benchmarks/validate.py": {"Validation"},
    "tasks/contamination.py": {"Contamination", "Overlap"},
    "tasks/cpu/leg_counting/traces.py": {"TraceSettings"},
    "tasks/cpu/products/traces.py": {"TraceSettings"},
    "tasks/jsonl.py": {"JsonlSource"},
}
"""By file: to be emptied, never to grow."""


def positional(path: Path) -> Iterator[str]:
    """Yield the dataclasses of a file that take more than three fields by position."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                call = decorator.func if isinstance(decorator, ast.Call) else decorator
                if not (isinstance(call, ast.Name) and call.id == "dataclass"):
                    continue
                options = decorator.keywords if isinstance(decorator, ast.Call) else []
                fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
                if len(fields) > MOST_POSITIONAL and "kw_only" not in {option.arg for option in options}:
                    yield node.name


def test_a_dataclass_with_more_than_three_fields_is_keyword_only() -> None:
    found = {
        str(path.relative_to(SOURCE)): names
        for path in sorted(SOURCE.rglob("*.py"))
        if (names := set(positional(path)))
    }
    new = {file: names - NOT_YET.get(file, set()) for file, names in found.items()}
    assert not {file: names for file, names in new.items() if names}, "give it kw_only=True"
