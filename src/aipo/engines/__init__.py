"""Engines: what samples from the policy.

`base` is the interface; `transformers` runs in this process, `vllm` asks a server.
"""
