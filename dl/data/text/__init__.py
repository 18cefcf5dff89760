"""Text: tokenizers, sources of text, and data for language models, classification and translation.

`table` finds and reads the rows of a data set, and `vocabulary` makes the tokenizer of a training split.
`corpus`, `classification` and `translation` make data of them. The folder may import the modules of `dl.data`
beside it, but not `dl.data.images`. Read `contract` first, then `classification`.
"""
