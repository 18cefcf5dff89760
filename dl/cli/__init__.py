"""The command line: words typed by a person, turned into calls of functions that any Python program can call.

Only this room parses words, prints results and chooses exit statuses; nothing in `dl` imports it, and it may
import every other room. Read `main` first, which is `main` of an experiment, then `commands`, the table of
all commands of `python -m dl`.
"""
