"""Rollouts: `episode` is the one coroutine, `group` the rollouts of a problem, `records` what is written
down."""
