"""TRL's own tool loop on the work of overlap.py; runs in an environment with TRL and prints JSON.

The same weights, group prompts' lengths, request rate, limits and latencies. The tool is asynchronous, which
is TRL's way to overlap; `transformers` generates. Different are what TRL makes different: its chat template
and tool-call format, and draws from one generator for the whole batch, so that lengths are equal in
distribution only.
"""

import asyncio
import json
import tempfile
from random import Random
from typing import Any

import trl  # type: ignore[import-not-found]  # this file runs where it is installed
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template  # type: ignore[import-not-found]

from consulting import LIMITS, biased, latency_s
from measure import clocked, policy, tokenizer, words
from overlap import GROUPS, ROLLOUTS

CALL = '\n{"name": "consult", "arguments": {"request": "left"}}\n'
PROMPT_WORDS = 8
waited_s: list[float] = []


async def consult(request: str) -> str:
    """Ask the Knowledge Agent.

    Args:
        request: What to ask.

    Returns:
        Its words.
    """
    waited_s.append(latency_s(len(waited_s)))
    await asyncio.sleep(waited_s[-1])
    return "no consultations left request not understood"


def with_calls() -> PreTrainedTokenizerFast:
    """Return the tokenizer with a tool call in three tokens, and Qwen3's chat template.

    The marks of a call take the places of tags, so that the vocabulary and the model stay the same.
    """
    built = tokenizer()
    names = {"<verify>": "<tool_call>", "</verify>": "</tool_call>", "<knowledge>": CALL}
    text = built.backend_tokenizer.to_str()
    for old, new in names.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    renamed = type(built.backend_tokenizer).from_str(text)
    calls = PreTrainedTokenizerFast(
        tokenizer_object=renamed, eos_token=built.eos_token, pad_token=built.pad_token
    )
    calls.chat_template = qwen3_chat_template
    return calls


def main() -> None:
    """Measure."""
    tokens = with_calls()
    model = biased(policy(tokens.eos_token_id), tokens, ["<tool_call>", CALL, "</tool_call>"])
    rows = [
        {"prompt": [{"role": "user", "content": tokens.decode(list(words(Random(i), PROMPT_WORDS)))}]}
        for i in range(GROUPS)
    ]
    size = ROLLOUTS // GROUPS
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="aipo-trl-"),
        per_device_train_batch_size=ROLLOUTS,
        num_generations=size,
        max_completion_length=LIMITS.max_response_tokens,
        max_tool_calling_iterations=LIMITS.max_consultations,
        use_cpu=True,
        bf16=False,
        report_to=[],
        top_k=0,
    )
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokens,
        args=config,
        train_dataset=Dataset.from_list(rows),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        tools=[consult],
    )
    inputs = [dict(row) for row in rows for _ in range(size)]
    trainer.model.train()
    scored: dict[str, Any] = {}
    made: list[Any] = []
    generate = trainer._generate

    def generated(prompts: list[Any]) -> Any:
        """Time the rollouts alone, without the log-probabilities and rewards that follow."""
        taken = clocked(lambda: made.append(generate(prompts)))
        scored.update(wall_s=round(taken.wall_s, 3), cpu_s=round(taken.cpu_s, 3))
        return made[-1]

    trainer._generate = generated
    trainer._generate_and_score_completions(inputs)
    completion_ids = made[-1][1]
    scored |= {
        "trl": trl.__version__,
        "consultations": len(waited_s),
        "waited_s": round(sum(waited_s), 3),
        "tokens": sum(map(len, completion_ids)),
    }
    print(json.dumps(scored))


if __name__ == "__main__":
    main()
