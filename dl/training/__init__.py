"""Training: what happens in every run, from an experiment to its result.

It may import `dl.runs`, `dl.data`, `dl.evaluation` and the modules at the top of `dl`. It does not depend
on any model or method. Read `step` first, then `program`, `session` and `loop`.
"""
