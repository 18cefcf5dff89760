"""`python -m dl COMMAND …`; `python -m dl --help` lists the commands."""

from dl.cli.commands import main

main()
