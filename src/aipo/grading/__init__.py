"""Grading: from a response to a verdict. Read `grade`, `extract`, `text`, `guards`, `pool`, `math`.

Nothing is imported here: a grader process starts with this package and must start fast.
"""
