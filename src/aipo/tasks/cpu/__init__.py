"""The CPU tasks: small worlds with a boundary, an oracle, and a word-level policy that two minutes make.

Only `aipo.tasks.registry` knows them; general code sees what their `TaskSpec` says.
"""
