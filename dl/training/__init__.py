"""Training: what happens in every run, from an experiment to its result.

It may import `dl.runs`, `dl.data`, `dl.evaluation` and the words at the top of `dl`; it knows no model and no
method. Read `step` first, then `program`, `session` and `loop`.
"""
