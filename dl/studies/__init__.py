"""Studies: experiments that are trained several times, and the comparison of what came out.

A study trains runs through `dl.training` and keeps them in one folder with one record (`folder`). It may
import everything but `dl.cli` and `dl.report`. Read `sweep` first.
"""
