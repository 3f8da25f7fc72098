"""The default protocol's wording, for oracles and curricula."""

from aipo.agents.named import AGENTS
from aipo.assembly.agents import protocol_of, wording_of

WORDING = wording_of(protocol_of([AGENTS[name] for name in AGENTS]))
