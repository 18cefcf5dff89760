"""Diagnostics: checks of an experiment before it is trained.

They show its layers, whether it can fit one batch, which learning rates work, and what its augmentation does.
This room may import `dl.training` and the rooms below it. Read `overfit` first.
"""
