"""System: files, locks and text, for all code that uses the operating system.

Nothing here depends on what is trained. It imports only `errors` of `dl`. Read `files` first.
"""
