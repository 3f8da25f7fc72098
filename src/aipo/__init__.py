"""AIPO: learning to reason from active interaction (arXiv 2605.08401).

Everything that a script needs stands at the top: `aipo.train`, `aipo.evaluate`, `aipo.compare`,
`aipo.load_settings`, and what an agent or a task of your own is made of. A name is imported when it is first
used: `import aipo` by itself imports nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aipo.agents.base import Agent as Agent
    from aipo.agents.base import AgentError as AgentError
    from aipo.agents.base import AgentQuery as AgentQuery
    from aipo.agents.base import AgentReply as AgentReply
    from aipo.agents.spec import AgentSpec as AgentSpec
    from aipo.assembly.evaluation import evaluate as evaluate
    from aipo.assembly.evaluation_options import EvaluationOptions as EvaluationOptions
    from aipo.assembly.run import TrainResult as TrainResult
    from aipo.assembly.run import train as train
    from aipo.comparison.run import compare as compare
    from aipo.config.loader import load_settings as load_settings
    from aipo.config.problems import SettingsError as SettingsError
    from aipo.config.settings import Settings as Settings
    from aipo.core.types import Verdict as Verdict
    from aipo.tasks.base import Grade as Grade
    from aipo.tasks.base import Problem as Problem
    from aipo.tasks.base import Split as Split
    from aipo.tasks.base import Task as Task
    from aipo.training.events import Progress as Progress
    from aipo.training.events import Reporter as Reporter
    from aipo.training.events import SignalledError as SignalledError
    from aipo.training.events import Silent as Silent
    from aipo.training.events import StopRunError as StopRunError

__version__ = "0.1.0"

_NAMES = {
    "agents.base": ("Agent", "AgentError", "AgentQuery", "AgentReply"),
    "agents.spec": ("AgentSpec",),
    "assembly.evaluation": ("evaluate",),
    "assembly.evaluation_options": ("EvaluationOptions",),
    "assembly.run": ("TrainResult", "train"),
    "comparison.run": ("compare",),
    "config.loader": ("load_settings",),
    "config.problems": ("SettingsError",),
    "config.settings": ("Settings",),
    "core.types": ("Verdict",),
    "tasks.base": ("Grade", "Problem", "Split", "Task"),
    "training.events": ("Progress", "Reporter", "SignalledError", "Silent", "StopRunError"),
}
_HOMES = {name: f"aipo.{module}" for module, names in _NAMES.items() for name in names}
__all__ = ["__version__", *_HOMES]  # names of strings, and a test holds it against the above


def __getattr__(name: str) -> Any:
    """Import what is asked for; see PEP 562."""
    if name not in _HOMES:
        raise AttributeError(f"module 'aipo' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
