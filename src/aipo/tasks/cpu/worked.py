"""What a rollout says with all consulting taken out: how an oracle of a CPU task reads it.

The content of feedback stays, as if the policy had written it; requests, notices and tags go.
"""

import re

from aipo.tasks.base import Wording


class Reader:
    """Reads rollouts of one protocol.

    >>> wording = Wording({"knowledge": "knowledge"}, "feedback", {"empty": "no answer"})
    >>> Reader(wording).words("a <knowledge> a </knowledge> <feedback> 4 </feedback> 2 1")
    ['a', '4', '2', '1']
    """

    def __init__(self, wording: Wording) -> None:
        requests = "|".join(map(re.escape, wording.requests.values()))
        feedback = re.escape(wording.feedback)
        ends = "|".join(dict.fromkeys(re.escape(notice.split()[-1]) for notice in wording.notices.values()))
        self._request = re.compile(rf"<({requests})>.*?</\1>", re.DOTALL)
        self._notice = re.compile(rf"<{feedback}>[^<]*\b(?:{ends})\s*</{feedback}>")
        self._tag = re.compile(rf"</?(?:{feedback}|{requests})>")

    def words(self, rollout: str) -> list[str]:
        """Return the words of a rollout without requests, notices and tags, the content of feedback kept."""
        return self._tag.sub(" ", self._notice.sub(" ", self._request.sub(" ", rollout))).split()
