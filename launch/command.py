"""The command that runs on the other machines, and the names that lead there.

A command is a tuple of words, never one text. Every word and every name is checked before anything runs, so
that none can become an option, a path elsewhere, or a second command.
"""

import itertools
import re
import shlex
from collections.abc import Sequence

from launch.errors import UserError

Command = tuple[str, ...]

_MODULE = re.compile(r"dl|experiments(?:\.[A-Za-z_][A-Za-z0-9_]*)+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SUBSTITUTION = re.compile(r"\$[({]|`")  # what a shell or Kubernetes would replace
_TRAINS = ("sweep", "learning-curve")  # commands of `python -m dl` that a second start resumes
_LONGEST = 200  # characters of a name
_SHOWN = 60  # characters of a word in a message
EXAMPLE = "-- python -m experiments.mnist_cnn --workdir runs/mnist"


def check_command(words: Sequence[str], needs_workdir: bool = True) -> Command:
    """Returns the command behind `--` of a command line.

    Args:
      words: such as `python -m experiments.mnist_cnn --workdir runs/mnist`.
      needs_workdir: whether a command that trains must name its folder, so that a second start resumes it.

    Raises:
      UserError: another program or module, a word that no command needs, or a missing `--workdir`.
    """
    if not words:
        raise UserError(f"there is no command; end the line with {EXAMPLE}")
    for word in words:
        if _CONTROL.search(word):
            raise UserError(f"the word {shown(word)} of the command has a control character; remove it")
        if _SUBSTITUTION.search(word):
            raise UserError(
                f"the word {shown(word)} of the command is not expanded; write its value in place of it"
            )
    if tuple(words[:2]) != ("python", "-m") or len(words) < 3 or not _MODULE.fullmatch(words[2]):
        raise UserError(
            f"the command begins with {shown(shlex.join(words[:3]))}; it must begin with "
            "python -m experiments.NAME or python -m dl"
        )
    workdir = option_of(words, "--workdir")
    if workdir is not None and ".." in workdir.split("/"):
        raise UserError(f"--workdir {shown(workdir)} leads out of its folder; write a path without ..")
    trains = words[2] != "dl" or (len(words) > 3 and words[3] in _TRAINS)
    if needs_workdir and trains and not workdir:
        raise UserError(
            "the command has no --workdir; add --workdir FOLDER, so that a second start resumes the run"
        )
    return tuple(words)


def option_of(words: Sequence[str], name: str) -> str | None:
    """Returns the value of an option of a command, the last one where it stands twice; `None` without it."""
    values = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    values += [value for word, value in itertools.pairwise(words) if word == name]
    return values[-1] if values else None


def check_name(what: str, text: str, pattern: str, expected: str) -> str:
    """Returns a name that matches a pattern completely.

    Args:
      what: what the name names, such as `--zone`.
      text: the name.
      pattern: a regular expression that admits neither spaces nor a dash at the beginning.
      expected: what the message says of a valid name.

    Raises:
      UserError: another name.
    """
    if len(text) > _LONGEST or not re.fullmatch(pattern, text, re.ASCII):
        raise UserError(f"{what} {shown(text)} is not valid; it must be {expected}")
    return text


def check_path(what: str, text: str) -> str:
    """Returns a relative path of plain characters that stays in its folder."""
    expected = "a relative path of letters, digits, dots, dashes and underscores, without .."
    check_name(what, text, r"[A-Za-z0-9_.][A-Za-z0-9_.-]*(/[A-Za-z0-9_.][A-Za-z0-9_.-]*)*", expected)
    if ".." in text.split("/"):
        raise UserError(f"{what} {shown(text)} is not valid; it must be {expected}")
    return text


def for_shell(*commands: Sequence[str]) -> str:
    """Returns the line of a remote shell that runs commands one after the other until one fails.

    This is the only place that writes a line for a shell. Every word is quoted.
    """
    return " && ".join(shlex.join(words) for words in commands)


def shown(text: str) -> str:
    """Returns a word as a message shows it: quoted, on one line, and not too long."""
    quoted = ascii(text)
    return quoted if len(quoted) <= _SHOWN else f"{quoted[:_SHOWN]}…"
