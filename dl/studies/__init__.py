"""Studies: experiments that are trained several times, and the comparison of their results.

A study trains runs through `dl.training` and keeps them in one folder with one record (`folder`). This room
may import all rooms except `dl.cli` and `dl.report`. Read `sweep` first.
"""
