"""The bare side of step.py: what a step is without a trainer, a turn for each.

`model.generate`, one forward pass over whole sequences, log p of the sampled tokens times an advantage, one
backward pass, AdamW. No records, no log-probabilities from sampling, no entropy, no clip, no guards.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from step_work import LEARNING_RATE, Turns, Work


def main() -> None:
    """Make steps."""
    work, turns = Work.given(), Turns()
    tokens: Any = AutoTokenizer.from_pretrained(work.folder + "/policy")
    model: Any = AutoModelForCausalLM.from_pretrained(work.folder + "/policy")
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    rows = [
        tokens.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        for chat in work.chats()
    ]
    prompts = torch.tensor(rows).repeat_interleave(work.rollouts, 0)
    advantages = torch.tensor([1.0, -1.0] * (work.sequences // 2)).unsqueeze(1)
    turns.wait()
    while True:
        step(model, prompts, advantages, work.new_tokens)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        turns.wait({"tokens": work.sequences * work.new_tokens, "teaching": work.prompts})


def step(model: Any, prompts: torch.Tensor, advantages: torch.Tensor, new_tokens: int) -> None:
    """Sample and leave the gradient in the model."""
    with torch.no_grad():
        ids = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
    assert ids.shape[1] == prompts.shape[1] + new_tokens, "an early end would make the comparison worthless"
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    log_p = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    (-(log_p * advantages)[:, -new_tokens:].mean()).backward()


if __name__ == "__main__":
    main()
