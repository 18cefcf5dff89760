"""Text: tokenizers, sources of text, and data for language models, classification and translation.

It may import the modules of `dl.data` beside it, but not `dl.data.images`. Read `tokenizer` first.
"""
