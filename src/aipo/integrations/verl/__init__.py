"""AIPO on verl (docs/verl.md): an installed plugin, no fork.

Read in this order: `plugin` (what verl loads), `agent_loop` and `engine` (a rollout), `output` (its way into
verl's data plane), `trainer`, `step` and `credit` (a step), `loss` (the objective), `refusals` (what must not
run), `offered` (which settings mean something).
Nothing is imported here: verl loads `plugin` in each of its processes; the verbs read `recipe` without verl.
"""
