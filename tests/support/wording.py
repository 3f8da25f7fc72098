"""The default protocol's wording, for oracles and curricula."""

from aipo.assembly.parts import build_protocol, wording_of
from aipo.config.settings import ConsultSettings

WORDING = wording_of(build_protocol(ConsultSettings(), ()))
