"""From a GGUF file to a plain Hugging Face folder, checked by the sentence that it says.

transformers reads the file (with the package `gguf`); the folder is whole or not there, and says in
`aipo.json` where it came from. Not converted: adapters, vision parts, files in several parts.
"""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.utils.logging import disable_progress_bar

from aipo.engines.stops import end_ids, template_end

SOURCE = "aipo.json"
TIED_FROM = 0.99
"""Least mean cosine of the rows of input and output embedding at which the two become one again. Both are
quantised copies of one matrix where a model was tied: Qwen2.5's agree to .999."""
QUESTION = "What is the capital of France? Answer in one short sentence."
SAMPLE_TOKENS = 24

Dtype = Literal["float32", "bfloat16"]
Note = Callable[[str], None]


class GgufError(ValueError):
    """A GGUF file cannot become a policy; the message names the file and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a folder's weights came from, as its `aipo.json` says."""

    file: str
    sha256: str
    licence: str
    architecture: str
    dtype: str


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def source_of(folder: Path) -> Source | None:
    """Return where a folder came from; None where it is no folder of this module."""
    try:
        return Source(**json.loads((folder / SOURCE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def import_gguf(
    file: Path, out: Path, dtype: Dtype = "float32", template: Path | None = None, note: Note = print
) -> Path:
    """Write a GGUF file as a plain Hugging Face folder and return it.

    Embeddings are tied again where they agree (`TIED_FROM`), a beginning-of-text token that the file asks for
    and the chat template leaves out is put before the template, and the end of an assistant's turn becomes an
    end token. The folder is then loaded as any other and answers `QUESTION`, greedily, through `note`.

    Args:
        file: The GGUF file, quantised or not.
        out: The folder; it may not exist, unless it was made from this very file in this dtype.
        dtype: Of the weights that are written.
        template: A chat template (Jinja) in place of the file's own.
        note: Takes each line of what was found.

    Raises:
        GgufError: no GGUF file, an architecture that transformers does not read, no chat template, no end
            token, or `out` is there.
    """
    if find_spec("gguf") is None:
        raise GgufError(f"{file}: reading it takes the package gguf; pip install 'aipo[gguf]'")
    if not file.is_file():
        raise GgufError(f"{file}: no such file; name a GGUF file")
    disable_progress_bar()
    header = _header(file)
    source = Source(
        file=file.name,
        sha256=sha256_of(file),
        licence=str(header.get("general.license", "not stated in the file")),
        architecture=str(header["general.architecture"]),
        dtype=dtype,
    )
    note(f"{file.name}: {source.architecture}, licence {source.licence}, SHA-256 {source.sha256}")
    if out.exists():
        if source_of(out) == source:
            note(f"it is there already: {out}")
            return out
        raise GgufError(f"{out}: it exists and was not made from {file.name} in {dtype}; name another folder")
    tokenizer = _tokenizer(file, header, template, note)
    model = _plain_model(file, dtype, note)
    model.generation_config.eos_token_id = sorted(end_ids(model, tokenizer))
    turn = tokenizer.convert_ids_to_tokens(sorted(template_end(tokenizer)))
    note(f"a turn ends with {turn or 'no token of its own'}")
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    (aside / SOURCE).write_text(json.dumps(asdict(source), indent=1) + "\n")
    _say_something(aside, note)
    aside.rename(out)
    note(f"written to {out}")
    return out


def _header(file: Path) -> dict[str, Any]:
    """Return the fields of the file that are looked at. Raises `GgufError`."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(file).fields
    except (ValueError, IndexError, KeyError) as error:
        raise GgufError(f"{file}: no GGUF file, or a damaged one ({error})") from error
    wanted = ("general.", "tokenizer.ggml.add_", "tokenizer.ggml.model")
    header = {name: field.contents() for name, field in fields.items() if name.startswith(wanted)}
    architecture = str(header.get("general.architecture", "none"))
    known = sorted(set(GGUF_CONFIG_MAPPING) - {"general", "tokenizer"})
    if architecture.replace("-", "_").replace("moe", "_moe").replace("__", "_") not in known:
        raise GgufError(
            f"{file}: architecture {architecture!r} is not among those that transformers reads from GGUF: "
            f"{', '.join(known)}; take the model's own Hugging Face folder"
        )
    return header


def _tokenizer(
    file: Path, header: dict[str, Any], template: Path | None, note: Note
) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a chat template. Raises `GgufError` where there is none."""
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    if template is not None:
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise GgufError(
            f"{file}: it has no chat template; take an instruct model, or give one with --template FILE.jinja"
        )
    if tokenizer.eos_token_id is None:
        raise GgufError(f"{file}: it names no end token (tokenizer.ggml.eos_token_id); take another file")
    # As in llama.cpp: SentencePiece models begin with it unless the file says otherwise.
    begins = header.get("tokenizer.ggml.add_bos_token", header.get("tokenizer.ggml.model") == "llama")
    if begins and tokenizer.bos_token_id is not None and _rendered(tokenizer)[:1] != [tokenizer.bos_token_id]:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
        note(f"the template left out {tokenizer.bos_token}, with which the file says that texts begin; added")
    return tokenizer


def _rendered(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    turns = [{"role": "user", "content": QUESTION}]
    return list(
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    )


def _plain_model(file: Path, dtype: Dtype, note: Note) -> PreTrainedModel:
    """Return the model without a trace of its quantisation, tied where the embeddings agree."""
    read = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        dtype=getattr(torch, dtype),
        quantization_config=GgufConfig(dequantize=True),
    )
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    weights = read.state_dict()
    head: Any = read.get_output_embeddings()
    embedding: Any = read.get_input_embeddings()
    if not config.tie_word_embeddings and head is not None and head.weight.shape == embedding.weight.shape:
        cosine = mean_cosine(head.weight, embedding.weight)
        config.tie_word_embeddings = cosine >= TIED_FROM
        does = "one matrix again" if config.tie_word_embeddings else "two matrices"
        note(f"input and output embedding: mean cosine {cosine:.3f} (one from {TIED_FROM} on): {does}")
    with torch.device("meta"):
        plain = type(read)(config)
    plain.load_state_dict(weights, strict=False, assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(read.generation_config)
    return plain


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """Return the mean cosine of the rows of two matrices of one shape, [V, H]."""
    rows = torch.nn.functional.cosine_similarity(a.detach().float(), b.detach().float(), dim=-1)
    return float(rows.mean())


def _say_something(folder: Path, note: Note) -> None:
    """Load the folder as any other and let it answer, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    prompt = torch.tensor([_rendered(tokenizer)])
    with torch.no_grad():
        whole = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=SAMPLE_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    answer = whole[0, prompt.shape[1] :].tolist()
    ended = answer[-1] in end_ids(model, tokenizer)
    note(f"asked: {QUESTION}")
    note(f"says:  {tokenizer.decode(answer, skip_special_tokens=True)!r}" + ("" if ended else " …"))
