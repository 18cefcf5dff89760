"""Methods: families of techniques that fill a seam of the trainer.

A file holds one family: it returns a task, a `grad_fn`, an optax transformation or a Linen module, and never
forks the loop. It may import `dl.data`, `dl.models`, `dl.evaluation` and the words at the top of `dl`. Read
`mixing` first.
"""
