"""A CPU task: products of two-digit numbers, a procedure that practice on easy problems does not give."""
