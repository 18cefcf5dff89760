"""Runs: the folder of a run on disk, and the output of a run in the terminal.

The folder of a run, its log, its predictions and its provenance. It may import `dl.data`, `dl.evaluation`,
`dl.system` and the modules at the top of `dl`. Read `folder` first.
"""
