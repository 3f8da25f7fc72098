"""What several tests share: policies, engines, servers, agents, faults, kill points."""

from pathlib import Path


def mcp_server_path() -> Path:
    """Return the program of `mcp_server.py`, which only a process of its own imports."""
    return Path(__file__).with_name("mcp_server.py")
