"""Solo evaluation and what is said of it: records, pass@k with intervals, comparison, table, plots.

Read in this order: `records` (what an evaluation leaves behind), `statistics` (what may be concluded),
`table` and `plots` (how it is shown). May import `core`, `tasks`, `rollout` and `config`; nothing here
samples from an agent, and every number that is shown derives from records.
"""
