"""Chat templates with tools in the manner of three families, and tokenizers that carry them.

Written here after what the families' own templates make of a conversation. `QWEN`: calls and replies between
tags, the reply a user's message. `HERMES`: the same with a space, the arguments first, and who replies in
JSON. `LLAMA`: a call is the turn's JSON object, the reply a JSON string of the role ipython.
"""

from functools import cache

from transformers import PreTrainedTokenizerFast

from aipo.agents.named import AGENTS
from aipo.assembly.agents import protocol_of
from aipo.consult.tool_template import tool_texts
from aipo.consult.tools import ToolCalls
from aipo.core.types import PAPER_AGENTS
from aipo.engines.stops import ends_of
from support.policies import QWEN_SPLIT
from support.tokenizers import byte_level_backend

QWEN = (
    "{% if tools %}{{ '<|im_start|>system\n' + (messages[0].content if messages[0].role == 'system' else "
    "'You are helpful.') + '\n\n# Tools\n<tools>' }}{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor %}"
    "{{ '\n</tools>\n\nReturn each call in <tool_call></tool_call>.<|im_end|>\n' }}"
    "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant' }}"
    "{% if m.content %}{{ '\n' + m.content }}{% endif %}{% for c in m.tool_calls %}"
    '{{ \'\n<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{ c.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}{% if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}"
    "{{ '<|im_start|>user' }}{% endif %}{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HERMES = (
    "{% if tools %}{{ '<|im_start|>system\nTools: <tools> ' }}{% for t in tools %}{{ t.function | tojson }}"
    "{% endfor %}{{ ' </tools><|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{% if m.role != 'tool' and m.tool_calls is not defined %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant' }}{% for c in m.tool_calls %}"
    "{{ '\n<tool_call>\n{ \"arguments\": ' }}{{ c.function.arguments | tojson }}"
    "{{ ', \"name\": \"' + c.function.name + '\"}\n</tool_call> ' }}{% endfor %}{{ '<|im_end|>\n' }}"
    '{% else %}{{ \'<|im_start|>tool\n<tool_response>\n{"name": "\' + m.name + \'", "content": \' }}'
    "{{ m.content | tojson }}{{ '}\n</tool_response> <|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{% if tools %}{{ 'Environment: ipython\n' }}{% endif %}{{ 'Today Date: ' + strftime_now('%d %b %Y') }}"
    "{% if messages[0].role == 'system' %}{{ '\n\n' + messages[0].content }}{% set messages = messages[1:] %}"
    "{% endif %}{{ '<|eot_id|>' }}{% for m in messages %}{% if m.role == 'user' and loop.first and tools %}"
    '{{ \'<|start_header_id|>user<|end_header_id|>\n\nRespond with {"name": function name, "parameters": '
    "dictionary}.\n\n' }}{% for t in tools %}{{ t | tojson(indent=4) }}{{ '\n\n' }}{% endfor %}"
    "{{ m.content + '<|eot_id|>' }}{% elif m.role == 'tool' %}"
    "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{ m.content | tojson }}{{ '<|eot_id|>' }}"
    '{% elif m.tool_calls %}{{ \'<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "\' }}'
    '{{ m.tool_calls[0].function.name + \'", "parameters": \' }}{{ m.tool_calls[0].function.arguments '
    "| tojson }}"
    "{{ '}<|eot_id|>' }}{% else %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content + '<|eot_id|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
TEMPLATES = {"qwen": QWEN, "hermes": HERMES, "llama": LLAMA}
_MARKS = {
    "qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "hermes": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama": (
        "<|end_of_text|>",
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
    ),
}
_ENDS = {"qwen": "<|im_end|>", "hermes": "<|im_end|>", "llama": "<|eot_id|>"}
_CORPUS = [
    '<tool_call>\n{"name": "knowledge", "arguments": {"query": "how many legs has a spider?"}}\n</tool_call>',
    '{"name": "verify", "parameters": {"query": "is 8 right?"}}',
    "<tool_response>\na spider has 8 legs.\n</tool_response>\nso the answer is \\boxed{8}.",
    "user assistant system tool ipython",
    "Solve the problem. how many? 0 1 2 3 4 5 6 7 8 9 + - * = no answer; request not understood",
] * 20


@cache
def _built(family: str) -> PreTrainedTokenizerFast:
    backend = byte_level_backend(_CORPUS, 420, _MARKS[family], QWEN_SPLIT)
    end = _ENDS[family]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=end,
        pad_token=_MARKS[family][0],
        extra_special_tokens=[mark for mark in _MARKS[family][1:] if mark != end],
    )
    if family == "qwen":  # as Qwen2.5's: ids of their own, but no special tokens
        tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer


def tool_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with the family's marks and a template with tools."""
    return _built(family)


def calls_of(family: str) -> ToolCalls:
    """Return the tool calls of the paper's three agents under a family's template."""
    tags = protocol_of([AGENTS[name] for name in PAPER_AGENTS])
    return ToolCalls(
        texts=tool_texts(tool_tokenizer(family), PAPER_AGENTS, ends_of(None, tool_tokenizer(family))),
        enabled=tags.enabled,
        must_be_asked=tags.must_be_asked,
        offers=tags.offers,
    )
