"""`python -m dl COMMAND …`; `python -m dl --help` lists the commands."""

from dl.cli import main

main()
