"""The packaged system prompts: text files of `prompts/`, whose first line, the version, no model reads."""

from importlib.resources import files


def packaged(name: str) -> str:
    """Return a packaged text without its first line."""
    text = files("aipo.consult").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")
    return text.partition("\n")[2].strip()
