"""Analysis: what a trained model does, beyond the metrics of its own test split.

An analysis loads a finished run through `dl.inference` and returns figures. It may import `dl.inference`,
`dl.diagnostics`, `dl.training` and what lies below them. Read `robustness` first.
"""
