"""Inference: a trained model is loaded from its run and used on new inputs.

It may import `dl.diagnostics`, `dl.training` and what lies below them. Read `load` first: from a run's folder
to its experiment and variables.
"""
