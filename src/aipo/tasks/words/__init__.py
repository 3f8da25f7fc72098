"""Tasks in words, for pretrained policies: natural language, free text, a boundary that is the policy's own.

Which problems are easy and which are hard is measured on the policy itself, before any training.
"""
