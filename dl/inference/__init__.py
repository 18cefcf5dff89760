"""Inference: loads a trained model from its run, uses it on new inputs, and exports it.

It may import `dl.diagnostics`, `dl.training` and the rooms below them. Read `load` first: it makes the
experiment and the variables from the folder of a run.
"""
