"""Diagnostics: checks of an experiment before it is trained.

They show its layers, whether it can fit one batch, which learning rates work, what its augmentation does, and
what a step takes on devices that are not here (`plan`).
This room may import `dl.training` and the rooms below it. Read `overfit` first.
"""
