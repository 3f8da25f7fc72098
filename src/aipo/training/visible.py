r"""Foreign text made safe to show.

Owns what of a text may reach a terminal, also by way of a file that somebody reads with `cat`. Must not know
who shows it. Invariant: no control character but the end of a line and a tab is left.
"""

_LAYOUT = "\n\t"


def visible(text: str) -> str:
    r"""Return foreign text for a terminal: what would move the cursor or turn the text stands as an escape.

    >>> visible("a\x1b[2Jb\u202e")
    'a\\x1b[2Jb\\u202e'
    """
    return "".join(c if c.isprintable() or c in _LAYOUT else repr(c)[1:-1] for c in text)
