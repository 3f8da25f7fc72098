"""Benchmarks: evaluation and training sets by name. Read `benchmark`, `catalogue`, `load`, `task`.

Nothing is imported here, so that a list of names costs nothing.
"""
