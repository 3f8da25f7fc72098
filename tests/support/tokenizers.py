"""Small tokenizers built on the spot: no downloads, and the three kinds of ids that the protocol meets.

`word_level`: whole words, tags are single special tokens, unknown words are <unk>.
`byte_level_bpe`: Qwen-like; tags are text of several tokens, `>` and a newline are one token, ChatML.
`byte_fallback_bpe`: Llama-2-like; unknown characters are one token a byte, incomplete ones decode to U+FFFD.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache, wraps
from typing import ParamSpec

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

P = ParamSpec("P")
TAGS = tuple(f"<{s}{name}>" for name in ("verify", "knowledge", "reasoning", "feedback") for s in ("", "/"))
NOTICE_WORDS = "no consultations left request not understood agent unavailable answer".split()
WORDS = tuple("dogs spider legs of a 0 1 2 4 8 = + ; <end> system user assistant check".split())
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "<verify> is 2 + 2 = 4 right </verify>\n",
    "<knowledge> legs of a spider </knowledge>\n",
    "<reasoning> what next </reasoning>\n",
    "so <verify> 8 </verify>, so <knowledge> legs </knowledge>\n",
    "the answer is 8 legs </knowledge>\n\nso a spider has 8 legs.\n",
    "No, \u201cquoted\u201d \u4f60\u597d \U0001f600 text.\n",
] * 20
_QWEN_SPLIT = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def _copied(build: Callable[P, PreTrainedTokenizerFast]) -> Callable[P, PreTrainedTokenizerFast]:
    """Build once and hand out copies: a test that gives one a template changes it for no other test."""
    kept = cache(build)

    @wraps(build)
    def copy(*args: P.args, **kwargs: P.kwargs) -> PreTrainedTokenizerFast:
        return deepcopy(kept(*args, **kwargs))  # type: ignore[arg-type]

    return copy


@_copied
def word_level(
    tags: tuple[str, ...] = TAGS, words: tuple[str, ...] = (*WORDS, *NOTICE_WORDS)
) -> PreTrainedTokenizerFast:
    """Whole words; each of `tags` is one special token."""
    vocabulary = dict.fromkeys(["<pad>", "<unk>", *words, "<", ">", "/", "verify", "feedback"])
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", pad_token="<pad>", eos_token="<end>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(tags)})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + ' ; ' }}{% endfor %}"
    return tokenizer


def byte_level_backend(
    texts: Sequence[str],
    size: int,
    special: Sequence[str],
    split: str,
    normalizer: normalizers.Normalizer | None = None,
) -> Tokenizer:
    """Train byte-level BPE on texts, cut into words by `split` first, with `special` tokens."""
    backend = Tokenizer(models.BPE())
    if normalizer is not None:
        backend.normalizer = normalizer
    words = pre_tokenizers.Split(Regex(split), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
    )
    backend.train_from_iterator(texts, trainer)
    return backend


@_copied
def byte_level_bpe(lowercase: bool = False) -> PreTrainedTokenizerFast:
    """Qwen-like byte-level BPE; the ChatML marks are special, `<|im_start|>` only by its flag."""
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    normalizer = normalizers.Lowercase() if lowercase else None
    model = byte_level_backend(CORPUS, 360, special, _QWEN_SPLIT, normalizer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@_copied
def byte_fallback_bpe() -> PreTrainedTokenizerFast:
    """Llama-2-like: characters, and bytes for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    pieces += [chr(code) for code in range(0x21, 0x7F)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    model.normalizer = normalizers.Replace(" ", "\u2581")
    model.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
