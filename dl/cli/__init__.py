"""The command line: words typed by a person, turned into calls of functions that any Python program can call.

Nothing else in `dl` reads `sys.argv`, and nothing in `dl` imports this room. It may import every other room.
Read `main` first: the `main` of an experiment.
"""
