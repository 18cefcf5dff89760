"""Diagnostics: an experiment is examined before it is trained.

Its layers, whether it can learn one batch, which learning rates suit it, what its augmentation does. It may
import `dl.training` and what lies below it. Read `overfit` first.
"""
