"""What a launcher does to the world: it runs programs and writes files, or prints both."""

import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.errors import UserError

FOLDER = Path("runs/launch")  # of the files that launchers write; git ignores runs/


@dataclasses.dataclass(frozen=True)
class Done:
    """A program that has ended.

    Attributes:
      status: its exit status.
      output: its standard output; empty where it was not captured.
      errors: its standard error; empty where it was not captured.
    """

    status: int
    output: str = ""
    errors: str = ""


@dataclasses.dataclass(frozen=True)
class Steps:
    """Runs the steps of a launcher, or prints them.

    Attributes:
      dry_run: whether steps are printed and nothing happens. What is printed is what would run: each program
        as a line for a shell, each file with its path and its text.
    """

    dry_run: bool

    def run(self, argv: Sequence[str], *, captured: bool = False, stdin: Path | None = None) -> Done:
        """Runs a program to its end.

        Args:
          argv: the program and its arguments.
          captured: whether its output is returned. Otherwise it goes to the terminal.
          stdin: a file that the program reads as its standard input.

        Raises:
          UserError: the program is not installed.
        """
        if self.dry_run:
            print(shlex.join(argv) + (f" < {shlex.quote(str(stdin))}" if stdin else ""))
            return Done(0)
        sys.stdout.flush()
        try:
            with open(stdin or "/dev/null", "rb") as standard_input:
                done = subprocess.run(
                    argv,
                    stdin=standard_input,
                    capture_output=captured,
                    text=True,
                    errors="replace",
                    check=False,
                )
        except FileNotFoundError:
            raise UserError(
                f"the program {argv[0]} is not installed; install it, or add its folder to PATH"
            ) from None
        status = done.returncode if done.returncode >= 0 else 128 - done.returncode
        return Done(status, done.stdout or "", done.stderr or "")

    def write(self, path: Path, text: str) -> None:
        """Writes a text file, and its folder where that is missing."""
        if self.dry_run:
            print(f"# {path}:\n{text}")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def say(self, line: str) -> None:
        """Prints what happens now; in a dry run, as a comment."""
        print(f"# {line}" if self.dry_run else line, flush=True)
