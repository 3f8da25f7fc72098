"""How a policy asks and how it is answered: tags, ids, prompts and limits, without models or agents."""
