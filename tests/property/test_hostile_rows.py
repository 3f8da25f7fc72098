"""Whatever a file of rows holds, it is read, or refused with one error that names it: nothing else is raised.

`AIPO_FUZZ_EXAMPLES` makes it look longer; scripts/fuzz.sh for a given time.
"""

import gzip
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aipo.tasks.base import TaskError
from aipo.tasks.jsonl import JsonlSource, read

EXAMPLES = int(os.environ.get("AIPO_FUZZ_EXAMPLES", "300"))
TEXTS = st.text(max_size=12) | st.sampled_from(
    (
        "\ud800",
        "a\0b",
        r"\boxed{4}",
        r"so \boxed{3} and \boxed{5}",
        "#### 7",
        "9" * 5000,
        "1e-07",
        "",
        " ",
        "nan",
    )
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("role", "content", "ground_truth", "x")), inner, max_size=3)
    ),
    max_leaves=8,
)
MOSTLY_FINE = st.just("What is 2 + 2?") | st.just(4) | VALUES
NAMES = ("id", "solution", "stratum", "tools", "reward_model", "other")
ROWS = st.fixed_dictionaries(
    {}, optional={"problem": MOSTLY_FINE, "answer": MOSTLY_FINE, **dict.fromkeys(NAMES, VALUES)}
)
WRAPPED = st.lists(ROWS, max_size=4) | st.fixed_dictionaries({"data": st.lists(ROWS, max_size=3)})


def _lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


PIECES = (
    '{"problem": "',
    '", "answer": ',
    "}",
    "\n",
    "[",
    "]",
    ",",
    '"',
    "\\ud83d",
    "\0",
    "1",
    "null",
    "problem,answer\n",
)
TEXT = (
    st.lists(ROWS, max_size=4).map(_lines)
    | WRAPPED.map(json.dumps)
    | st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
)
CONTENT = TEXT.flatmap(
    lambda text: st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-32")).map(
        lambda encoding: text.encode(encoding, "replace")
    )
) | st.binary(max_size=60)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    CONTENT,
    st.sampled_from((".jsonl", ".json", ".csv", ".jsonl.gz", ".parquet")),
    st.sampled_from(("answer", "reward_model.ground_truth")),
    st.sampled_from(("", "####")),
)
def test_every_file_is_read_or_refused(content: bytes, suffix: str, answer: str, after: str) -> None:
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(gzip.compress(content) if suffix.endswith("gz") and len(content) % 2 else content)
        try:
            loaded = read(JsonlSource(path=path, answer_field=answer, answer_after=after))
        except TaskError as error:
            assert str(path) in str(error) and len(str(error)) < 2000
            return
    assert time.process_time() - start < 1.0
    for problem in loaded.problems:
        text = "".join(
            (problem.text, problem.gold, problem.id, *problem.alternatives, problem.solution or "")
        )
        assert "\0" not in text and text.encode("utf-8") and problem.text.strip() and problem.gold.strip()
    assert len({problem.id for problem in loaded.problems}) == len(loaded.problems)
    assert all(str(path) in str(bad) and len(str(bad)) < 2000 for bad in loaded.bad)
