"""Engines of others that AIPO runs on; each calls `core` and the one rollout coroutine and holds no maths."""
