"""Elastic resuming: runs on other numbers of processes and devices, against an undisturbed run."""
