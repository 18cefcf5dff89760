"""The command line of a launcher: the parser, `--` before the command, and the exit status."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from launch.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are `UserError`s, and that takes no abbreviations."""

    def __init__(self, prog: str, *, description: str, usage: str | None = None, epilog: str | None = None):
        """Takes texts as they are: line breaks are kept where a text has any."""
        raw = "\n" in description
        kind = argparse.RawDescriptionHelpFormatter if raw else argparse.HelpFormatter
        super().__init__(
            prog,
            description=description,
            usage=usage,
            epilog=epilog,
            formatter_class=kind,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises UserError in place of printing the usage."""
        raise UserError(f"{message}; --help lists all options")


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the launcher's own words, and the words behind the first `--`."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:place]), list(argv[place + 1 :])


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Adds the option that all launchers have."""
    parser.add_argument("--dry-run", action="store_true", help="Print what would run, and run nothing.")


def run_as_command(run: Callable[[Sequence[str]], int]) -> None:
    """Runs a launcher with the arguments of this process, and exits with its status.

    A user's mistake is one line on the standard error and status 2. Ctrl-C is status 130.
    """
    try:
        status = run(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = error.status
    except BrokenPipeError:  # the reader of the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    sys.exit(status)


def whole_number(low: int) -> Callable[[str], int]:
    """Returns the type of an option that is a whole number of at least `low`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        return int(text)

    return parse
