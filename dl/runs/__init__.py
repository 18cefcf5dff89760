"""Runs: what lies on disk afterwards, and what is printed meanwhile.

The folder of a run, its log, its predictions and its provenance. It may import `dl.data`, `dl.evaluation`,
`dl.system` and the words at the top of `dl`. Read `folder` first.
"""
