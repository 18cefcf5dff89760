"""Methods: families of training techniques that plug into an experiment.

Each file holds one family. It returns a task, a `grad_fn`, an optax transformation or a Linen module, and
does not change the training loop. It may import `dl.data`, `dl.models`, `dl.evaluation` and the modules at
the top of `dl`. Read `mixing` first.
"""
