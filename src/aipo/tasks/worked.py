"""What a rollout says with all consulting taken out: the one place where CPU tasks know the default tags.

Owns how an oracle reads a rollout. Must not know any one task.
Invariant: the content of feedback stays, as if the policy had written it; requests, notices and tags go.
"""

import re

_REQUEST = re.compile(r"<(verify|knowledge|reasoning)>.*?</\1>", re.DOTALL)
_NOTICE = re.compile(r"<feedback>[^<]*\b(?:left|understood|unavailable|answer)\s*</feedback>")
_TAG = re.compile(r"</?(?:feedback|verify|knowledge|reasoning)>")


def worked_words(rollout: str) -> list[str]:
    """Return the words of a rollout without requests, notices and tags, the content of feedback kept.

    >>> worked_words("a <knowledge> a </knowledge> <feedback> 4 </feedback> 2 1")
    ['a', '4', '2', '1']
    """
    return _TAG.sub(" ", _NOTICE.sub(" ", _REQUEST.sub(" ", rollout))).split()
