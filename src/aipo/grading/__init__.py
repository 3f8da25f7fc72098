"""Grading: from a response to a verdict. Read `grade`, `extract`, `text`, `guards`, `pool`, `math`.

Multiple choice is `choice`. Programs: `code`, `code_tests`, `code_check`, `code_values`, `code_pool`, then
`sandbox/`.

Nothing is imported here: a grader process starts with this package and must start fast.
"""
