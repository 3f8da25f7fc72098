"""A real MCP server for tests, by the official SDK: `python mcp_server.py` over stdio, with a port over HTTP.

Its tools look legs up, add, fail, die, and hang; each start of it adds a line to the file in STARTS.
"""

import os
import sys
import time
from pathlib import Path

from mcp.server import MCPServer

LEGS = {"spider": 8, "dog": 4}
server = MCPServer("legs")


@server.tool()
def legs(animal: str) -> str:
    """Say how many legs an animal has."""
    for name, number in LEGS.items():
        if name in animal:
            return f"a {name} has {number} legs"
    raise ValueError(f"nobody knows {animal!r}")


@server.tool()
def between(text: str, left: str, right: str) -> str:
    """Put a text between two others."""
    return f"{left}{text}{right}"


@server.tool()
def secret(name: str) -> str:
    """Return an environment variable."""
    return os.environ.get(name, "none")


@server.tool()
def numbers(animal: str) -> dict[str, int]:
    """Return something that is no text."""
    return LEGS


@server.tool()
def die(animal: str) -> str:
    """End the server at the first question, and answer when it was started again."""
    if len(Path(os.environ["STARTS"]).read_text().splitlines()) < 2:
        print("the server fell over", file=sys.stderr, flush=True)
        os._exit(3)
    return "back again"


@server.tool()
def hang(animal: str) -> str:
    """Never answer."""
    time.sleep(60)
    return ""


if __name__ == "__main__":
    if "STARTS" in os.environ:
        with Path(os.environ["STARTS"]).open("a") as file:
            file.write("started\n")
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
