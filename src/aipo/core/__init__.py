"""The method: pure functions and frozen dataclasses over torch and the standard library.

Read in this order: `types` (the vocabulary), `tokens` (whose token is it?), `advantages`, `surrogates`,
`coefficients`, `objective`; `algorithms` then says what each published name puts together. Nothing here does
I/O, logs, reads settings or touches global randomness.
"""
