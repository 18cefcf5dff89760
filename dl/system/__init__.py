"""System: files, locks and text, for whatever touches the operating system.

Nothing here knows what is trained. It imports nothing of `dl` but `errors`. Read `files` first.
"""
