"""Starts experiments on other machines, and in several processes."""
