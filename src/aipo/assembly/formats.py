"""From settings and a tokenizer to the format in which the policy consults, and its codec."""

from transformers import PreTrainedTokenizerBase

from aipo.assembly.agents import build_protocol
from aipo.config.settings import Settings
from aipo.consult.codec import Codec, TagCodec
from aipo.consult.formats import Format
from aipo.consult.tool_codec import ToolCodec
from aipo.consult.tool_template import tool_texts
from aipo.consult.tools import ToolCalls
from aipo.engines.stops import ends_of


def build_format(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> tuple[Format, Codec]:
    """Return what `consult.format` names, made for this tokenizer.

    Raises `ValueError`s: `CodecError` for what the tokenizer cannot carry, `ToolTemplateError` for a chat
    template without tool calls.
    """
    tags = build_protocol(settings)
    if settings.consult.format == "tags" or not tags.enabled:
        return tags, TagCodec(tokenizer, tags)
    calls = ToolCalls(
        texts=tool_texts(tokenizer, tags.enabled, ends_of(None, tokenizer), settings.policy.date),
        enabled=tags.enabled,
        must_be_asked=tags.must_be_asked,
        offers=tags.offers,
    )
    return calls, ToolCodec(tokenizer, calls)
