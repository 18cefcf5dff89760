"""The command line that starts a run or a study again."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dl.experiment import Experiment
from dl.runs.provenance import module_name
from dl.system.bucket import url_of


def command_again(experiment_fn: Callable[..., Experiment], argv: Sequence[str] | None, folder: Path) -> str:
    """Returns what starts an experiment again in a folder: a command line, in a notebook a call of `main`."""
    main_module = sys.modules["__main__"]
    if experiment_fn.__module__ != "__main__" or getattr(main_module, "__spec__", None):
        return this_command(module_name(experiment_fn), folder, argv)
    if path := getattr(main_module, "__file__", None):
        return this_command(path, folder, argv)
    words = [*without_workdir(argv or ()), "--workdir", url_of(folder) or str(folder)]
    return f"main({experiment_fn.__name__}, {words})"


def this_command(program: str, folder: Path, argv: Sequence[str] | None = None) -> str:
    """Returns a command line with `folder` as its --workdir, which a user can type.

    Args:
      program: a module that `python -m` runs, or the path of a Python file.
      folder: the folder, which replaces the value of --workdir in `argv`.
      argv: the arguments after the program. `None` means those of this process.
    """
    words = without_workdir(sys.argv[1:] if argv is None else argv)
    start = ["python", program] if program.endswith(".py") else ["python", "-m", program]
    return shlex.join([*start, *words, "--workdir", url_of(folder) or str(folder)])


def without_workdir(argv: Sequence[str]) -> list[str]:
    """Returns the arguments of a command line without --workdir and its value."""
    kept, arguments = [], iter(argv)
    for argument in arguments:
        if argument == "--workdir":
            next(arguments, None)
        elif not argument.startswith("--workdir="):
            kept.append(argument)
    return kept
