"""What pytest does not collect: what imports verl, where that is not installed, and shims for verl."""

from importlib.util import find_spec

_NEED_VERL = ("agent_loop", "copies", "groups", "output", "plugin", "rows", "trainer")
_ON_VERL = [f"src/aipo/integrations/verl/{name}.py" for name in _NEED_VERL]
collect_ignore = ["tests/on_verl/cpu_for_verl.py"]  # importing it changes verl
if find_spec("transfer_queue") is None:
    collect_ignore += [*_ON_VERL, "tests/support/verl.py"]
