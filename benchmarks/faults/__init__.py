"""Injected faults: damaged files, kills and disks that take no more, against what a run promises."""
