"""AIPO: learning to reason from active interaction (arXiv 2605.08401)."""

__version__ = "0.1.0"
