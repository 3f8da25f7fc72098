"""What `import aipo` gives a script: quick, lazy, and the same names to a person, an IDE and mypy."""

import ast
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import aipo
from support.policies import counting_policy, counting_recipe, random_policy

SOURCE = Path(aipo.__file__)
QUICK = """
import sys, time
began = time.process_time()  # not the wall: other tests run beside this one
import aipo
took = time.process_time() - began
print(took)
heavy = {"torch", "transformers", "pydantic", "numpy", "rich", "typer"} & set(sys.modules)
assert not heavy, heavy
"""


def test_importing_the_package_is_quick_and_imports_nothing_heavy() -> None:
    took = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        took.append(float(done.stdout))
    assert min(took) < 0.1, took


def test_every_name_is_there_and_known_to_type_checkers() -> None:
    shown = {
        name.asname
        for block in ast.parse(SOURCE.read_text()).body
        if isinstance(block, ast.If)
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for name in line.names
    }
    assert shown | {"__version__"} == set(aipo.__all__)
    for name in aipo.__all__:
        assert getattr(aipo, name) is not None and name in dir(aipo)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        aipo.trian  # noqa: B018


class Pets:
    """A task of a user's own: the very first words of the tiny policy's vocabulary, and its own grading."""

    name = "pets"

    def __init__(self) -> None:
        self.graded = 0

    def problems(self, split: aipo.Split) -> Sequence[aipo.Problem]:
        return [aipo.Problem(id=f"{split}-{n}", text=f"dogs {n} ;", gold=str(4 * n)) for n in range(2, 6)]

    async def grade(self, problem: aipo.Problem, response: str) -> aipo.Grade:
        self.graded += 1
        right = problem.gold in response.split()
        verdict = aipo.Verdict.CORRECT if right else aipo.Verdict.INCORRECT
        return aipo.Grade(verdict, f"{problem.gold} is asked for")

    def without_answer(self, problem: aipo.Problem, text: str) -> str | None:
        return None


class Knowledge:
    """An agent of a user's own."""

    name = "knowledge"
    asked = 0

    async def answer(self, query: aipo.AgentQuery) -> aipo.AgentReply:
        type(self).asked += 1
        return aipo.AgentReply(text="dogs 4")


class Steps(aipo.Silent):
    """Keeps the steps."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def step(self, progress: aipo.Progress) -> None:
        self.steps.append(progress.step)


@pytest.fixture
def settings(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> aipo.Settings:
    policy = counting_policy(tmp_path_factory)
    recipe = counting_recipe(
        tmp_path,
        policy={"model": str(policy)},
        run={"output": str(tmp_path / "run")},
        agents={"enabled": ["knowledge"]},
        evaluate={"problems": 2, "samples_per_problem": 2, "pass_at": [1], "at_steps": [2]},
    )
    return aipo.load_settings(str(recipe), ["train.steps=2", "train.stratum_mix={}"])


def test_a_task_and_agents_of_ones_own_are_trained_on_in_silence(
    settings: aipo.Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    task, steps = Pets(), Steps()
    result = aipo.train(settings, task=task, agents=[Knowledge()], reporter=steps)
    assert result == aipo.TrainResult(
        policy=settings.run.output / "policy", folder=settings.run.output, step=2
    )
    assert (result.policy / "model.safetensors").exists()
    assert steps.steps == [1, 2] and task.graded > 0 and Knowledge.asked > 0
    assert '"problem": "train-' in (result.folder / "rollouts.jsonl").read_text()
    (record,) = aipo.evaluate(
        settings.model_copy(
            update={"evaluate": settings.evaluate.model_copy(update={"modes": ("unanswered",)})}
        ),
        checkpoint=result.policy,
        task=task,
        agents={"knowledge": Knowledge()},
        reporter=aipo.Silent(),
    )
    assert [r.problem for r in record.results] == ["test-2", "test-3"]
    assert capfd.readouterr() == ("", "")


def test_without_a_reporter_the_words_go_to_the_logger(
    settings: aipo.Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="aipo"):
        aipo.train(settings, task=Pets(), agents=[Knowledge()])
    assert "step 2/2" in caplog.messages and caplog.messages[-1].startswith("policy written to")


@pytest.mark.parametrize(
    ("times", "kind"), [(1, aipo.SignalledError), (2, aipo.SignalledError)], ids=["once", "twice"]
)
def test_sigterm_is_an_exception_that_a_script_can_catch(
    settings: aipo.Settings, times: int, kind: type[BaseException]
) -> None:
    class Impatient(aipo.Silent):
        def step(self, progress: aipo.Progress) -> None:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(kind) as raised:
        aipo.train(settings, task=Pets(), agents=[Knowledge()], reporter=Impatient())
    assert isinstance(raised.value, aipo.StopRunError) and raised.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert aipo.train(settings, task=Pets(), agents=[Knowledge()], reporter=aipo.Silent()).step == 2


def test_wrong_settings_are_a_value_error_before_anything_is_written(settings: aipo.Settings) -> None:
    with pytest.raises(ValueError, match=r"agents.enabled names .*knowledge"):
        aipo.train(settings, task=Pets(), agents=[], reporter=aipo.Silent())
    assert not settings.run.output.exists()


def test_the_example_of_the_readme_runs(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a random policy, in a folder where the recipe is shorter; the code is as it is printed."""
    readme = (SOURCE.parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    policy = random_policy(tmp_path_factory, "qwen2.5")
    assert "Qwen/Qwen2.5-0.5B-Instruct" in example
    (tmp_path / "recipes").mkdir()
    recipe = (SOURCE.parents[2] / "recipes" / "own.toml").read_text()
    for long, short in {
        "max_response_tokens = 2048": "max_response_tokens = 160\nrollouts_per_prompt = 2",
        "steps = 100": "steps = 1",
        "prompts_per_step = 16": "prompts_per_step = 2\nminibatches_per_step = 1",
    }.items():
        assert long in recipe
        recipe = recipe.replace(long, short)
    recipe += "\n[evaluate]\nproblems = 2\nsamples_per_problem = 2\npass_at = [1]\n"
    (tmp_path / "recipes" / "own.toml").write_text(recipe + "\n[consult]\nmax_feedback_tokens = 16\n")
    shutil.copy(SOURCE.parents[2] / "recipes" / "aipo.toml", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    said: list[object] = []
    own = {"__name__": "example", "print": said.append}
    exec(example.replace("Qwen/Qwen2.5-0.5B-Instruct", str(policy)), own)
    assert isinstance(result := own["result"], aipo.TrainResult) and result.step == 1
    ((unanswered, banned),) = said
    assert {unanswered.mode, banned.mode} == {"unanswered", "banned"} and len(banned.results) == 2


def test_the_library_does_not_know_its_command_line() -> None:
    """Not by a string either, which the import contracts do not see."""
    package = SOURCE.parent
    files = [p for p in package.rglob("*.py") if package / "cli" not in p.parents and p.name != "__main__.py"]
    assert len(files) > 100
    assert [str(path) for path in files if "aipo.cli" in path.read_text()] == []


def test_a_module_in_the_folder_that_the_command_is_started_in_is_found(tmp_path: Path) -> None:
    """The console script does not put the folder on the path by itself, as `python -m aipo` does."""
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "probe.py").write_text(
        "import sys\nfrom importlib.metadata import entry_points\n"
        "sys.path.pop(0)\n"
        "(script,) = entry_points(group='console_scripts', name='aipo')\n"
        "sys.argv[1:] = ['version']\n"
        "try:\n    script.load()()\nfinally:\n    import mine\n"
    )
    done = subprocess.run(
        [sys.executable, "probe.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, aipo.__version__), done.stderr
