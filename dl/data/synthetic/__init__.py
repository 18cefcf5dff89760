"""Data that a few lines draw: tasks that test one ability of a model, and need no download.

Each example is a pure function of a seed, its split and its index. A file holds one task. This folder may
import the other modules of `dl.data`. Read `adding` first.
"""
