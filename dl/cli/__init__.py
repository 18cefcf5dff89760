"""The command line: it parses arguments and calls functions that any Python program can call.

Only this room parses arguments, prints results and chooses exit statuses. It may import every other room, and
no other room imports it. Read `main` first, which is `main` of an experiment, then `commands`, the table of
all commands of `python -m dl`.
"""
