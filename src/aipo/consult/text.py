"""Which characters are words: what every text that comes from a model is cleaned of."""

NOT_TEXT = dict.fromkeys(
    code for code in (*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)) if chr(code) not in "\n\t"
)
"""Control characters, which no words need, and halves of characters, which no tokenizer takes: a table for
`str.translate`."""
