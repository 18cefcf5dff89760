"""Building blocks of sequence models: attention, feed-forward networks, positions, recurrence, and stacks.

A family of models assembles these blocks and adds its embeddings and its head. It may import the modules at
the top of `dl` and `dl.models.dropout`. Read `attention` first, then `layer`.
`recurrence` stands alone.
"""
