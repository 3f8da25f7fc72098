"""Whether the plugin is loaded, here and on every node of the cluster; loudly, because verl says nothing.

`missing()` is empty exactly where verl can find the agent loops, the trainer and the estimators.
"""

import os
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec

from packaging.version import Version

from aipo.core.advantages import ESTIMATORS
from aipo.integrations.verl.estimators import PREFIX
from aipo.integrations.verl.refusals import TRAINER

GROUP, NAME = "verl.plugins", "aipo"
LEAST, BELOW = Version("0.9.1"), Version("0.10")
LOOPS = ("aipo", "aipo_solo", "aipo_agents")


class PluginError(RuntimeError):
    """The plugin is not loaded; the message names what is missing, where, and the fix."""


def refuse_version() -> None:
    """Raise `PluginError` for a verl that the plugin was not written for."""
    try:
        found = version("verl")
    except PackageNotFoundError as error:
        raise PluginError("verl is not installed; pip install 'aipo[verl]'") from error
    if not LEAST <= Version(Version(found).base_version) < BELOW:
        raise PluginError(
            f"verl {found} is installed, this version of aipo works with verl >= {LEAST}, < {BELOW}; "
            "pip install 'aipo[verl]'"
        )


def missing() -> list[str]:
    """Return what verl would not find in this process, each with the fix; nothing when all is well."""
    refuse_version()
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    found = []
    for name in LOOPS:
        target = str(_agent_loop_registry.get(name, {}).get("_target_", ""))
        if not target.startswith("aipo.integrations.verl."):
            found.append(f"agent loop {name!r} is {target or 'not registered'}")
    found += [
        f"estimator {PREFIX + e!r} is not registered"
        for e in ESTIMATORS
        if PREFIX + e not in ADV_ESTIMATOR_REGISTRY
    ]
    if find_spec("transfer_queue") is None:
        found.append("TransferQueue is not installed, which verl's trainer needs; pip install 'aipo[verl]'")
    else:
        from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

        if TRAINER not in TRAINER_REGISTRY:
            found.append(f"trainer {TRAINER!r} is not registered")
    return [f"{what}{_why()}" for what in found]


def _why() -> str:
    """Return the likely reason why verl did not load the plugin."""
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if policy != "auto" and NAME not in policy.split(","):
        return f"; VERL_USE_EXTERNAL_PLUGINS = {policy!r} leaves it out: unset it, or add {NAME!r}"
    if not any(entry.name == NAME for entry in entry_points(group=GROUP)):
        return f"; no installed package has the entry point {GROUP}: {NAME}; pip install 'aipo[verl]'"
    return "; its import failed, `aipo verl check` shows the error (verl logs it at DEBUG only)"


def refuse_nodes_without_plugin(timeout_s: float = 300.0) -> None:
    """Ask every living node of the Ray cluster. Raises `PluginError` that names the nodes."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0:
            pinned = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, scheduling_strategy=pinned, max_retries=0)(missing)
            asked[node["NodeManagerAddress"]] = task.remote()
    found = []
    for address, answer in asked.items():
        try:
            found += [f"{address}: {what}" for what in ray.get(answer, timeout=timeout_s)]
        except ray.exceptions.RayError as error:
            found.append(f"{address}: {error}; install 'aipo[verl]' on every node")
    if found:
        raise PluginError("the plugin is not loaded on every node:\n  " + "\n  ".join(found))
