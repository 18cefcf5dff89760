"""Analysis: measurements of a trained model beyond the metrics of its test split.

An analysis loads a finished run through `dl.inference` and returns metrics. The explanations in
`attributions` are pure functions of a model instead. An analysis may import `dl.inference`, `dl.diagnostics`,
`dl.training` and the rooms below them. Read `robustness` first.
"""
