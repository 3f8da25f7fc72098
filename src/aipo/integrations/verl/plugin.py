"""What verl loads (entry point `verl.plugins: aipo`), in each of its processes: importing it registers.

An import that fails is reported on standard error before verl swallows it.
"""

import sys
from importlib.util import find_spec


def _register() -> None:
    from aipo.integrations.verl.nodes import refuse_version  # in here, so that its failure is reported too

    refuse_version()
    from aipo.integrations.verl import agent_loop as agent_loop
    from aipo.integrations.verl import estimators

    estimators.register()
    if find_spec("transfer_queue") is not None:  # a process that only serves rollouts may lack it
        from aipo.integrations.verl import trainer as trainer


try:
    _register()
except Exception as error:  # raised again: verl logs it at DEBUG only, and goes on without the plugin
    print(f"aipo: verl could not load the plugin: {error!r}. See `aipo verl check`.", file=sys.stderr)
    raise
