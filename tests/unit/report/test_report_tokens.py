"""Where tokens begin and end in a text: pieces add up to the text, or there are none."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from aipo.report.tokens import Pieces, utf16_length
from support.policies import byte_level_tokenizer

TEXTS = (
    "two dogs",
    "naïve – “quoted”",
    "🐙 octopus 👩‍👩‍👧",
    "日本語のテキスト",
    "a\n\n  b\t",
    "<knowledge>x</knowledge>",
)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte-level")
    byte_level_tokenizer(["two dogs and a spider"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that puts a space between tokens, as the tiny policy's does."""
    folder = tmp_path_factory.mktemp("words")
    backend = Tokenizer(models.WordLevel({"two": 0, "dogs": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_lengths_add_up_as_a_browser_counts(text: str, byte_level: Path) -> None:
    ids = Tokenizer.from_file(str(byte_level / "tokenizer.json")).encode(text).ids
    cuts = Pieces([byte_level]).cuts(ids, text)
    assert cuts is not None
    assert len(cuts) == len(ids)
    assert sum(cuts) == utf16_length(text) == len(text.encode("utf-16-le")) // 2


def test_a_character_of_several_tokens_falls_to_its_last_one(byte_level: Path) -> None:
    ids = Tokenizer.from_file(str(byte_level / "tokenizer.json")).encode("🐙").ids
    assert len(ids) > 1
    assert Pieces([byte_level]).cuts(ids, "🐙") == [0] * (len(ids) - 1) + [2]


def test_spaces_that_a_decoder_adds_belong_to_the_token_after_them(words: Path) -> None:
    assert Pieces([words]).cuts([0, 1, 1], "two dogs dogs") == [3, 5, 5]


def test_text_cut_inside_a_character_has_pieces_too(byte_level: Path) -> None:
    tokenizer = Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    ids = tokenizer.encode("a🐙").ids[:-1]
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert sum(Pieces([byte_level]).cuts(ids, text) or []) == utf16_length(text)


def test_a_tokenizer_that_spells_it_otherwise_gives_no_pieces(words: Path) -> None:
    assert Pieces([words]).cuts([0, 1], "two cats") is None
    assert Pieces([words]).cuts([0, 2**40], "two") is None


def test_without_a_tokenizer_there_are_no_pieces(tmp_path: Path) -> None:
    assert Pieces([tmp_path]).cuts([0], "two") is None
