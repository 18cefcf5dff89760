"""`python -m dl COMMAND …`: looks at an experiment without running it, or at what a run left.

The commands stand in `experiment_commands` and `run_commands`; those here read their own arguments.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dl.command import status_of
from dl.compare import compare_runs
from dl.console import Console, print_table
from dl.errors import UserError
from dl.experiment_commands import COMMANDS, Command
from dl.learning_curve import learning_curve
from dl.lookup import find_experiment, hint
from dl.options import parse
from dl.robustness import assess
from dl.run_commands import RUN_COMMANDS, RunCommand
from dl.sweep import sweep_options


def compare(argv: Sequence[str]) -> int:
    """Shows how finished runs differ, and tests which is better: RUN_A RUN_B, or by seed A1,A2 B1,B2."""
    tables, lines = compare_runs(argv)
    for table in tables:
        print_table(table.to_rich())
    print("\n".join(lines))
    return 0


def sweep(argv: Sequence[str]) -> int:
    """Searches the options of an experiment: EXPERIMENT learning_rate=log:1e-4:1e-1 batch_size=32,64."""
    has_name = bool(argv) and not argv[0].startswith("-")
    table, line = sweep_options(find_experiment(argv[0]) if has_name else None, argv[has_name:])
    print_table(table.to_rich())
    print(line)
    return 0


def curve(argv: Sequence[str]) -> int:
    """Fits a power law to the error over more and more data, or larger and larger models: EXPERIMENT."""
    if not argv or argv[0].startswith("-"):
        raise UserError("learning-curve needs an experiment first: python -m dl learning-curve NAME")
    table, line = learning_curve(find_experiment(argv[0]), argv[1:])
    print_table(table.to_rich())
    print(line)
    return 0


def robustness(argv: Sequence[str]) -> int:
    """Measures a finished classifier on corrupted images, by corruption and severity, and mCE: RUN."""
    table, lines = assess(argv)
    print_table(table.to_rich())
    print("\n".join(lines))
    return 0


# Commands that read their own arguments.
TOOLS: dict[str, Callable[[Sequence[str]], int]] = {
    "sweep": sweep,
    "learning-curve": curve,
}
RUN_TOOLS: dict[str, Callable[[Sequence[str]], int]] = {"compare": compare, "robustness": robustness}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its status; with 2 and one line on a user's mistake."""
    sys.exit(status_of(lambda: _run(sys.argv[1:] if argv is None else argv)))


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    name, *rest = argv
    if name in RUN_COMMANDS:
        return _run_on_folder(name, rest)
    if tool := {**TOOLS, **RUN_TOOLS}.get(name):
        return tool(rest)
    if name not in COMMANDS:
        raise UserError(
            f"there is no command {name}; {hint(name, [*COMMANDS, *TOOLS, *RUN_COMMANDS, *RUN_TOOLS])}"
        )
    command, prog = COMMANDS[name], f"python -m dl {name}"
    about = " ".join((inspect.getdoc(command.run) or "").split())
    if rest and rest[0] in ("-h", "--help"):
        parse(lambda: None, command.options, rest, f"{prog} EXPERIMENT", about)
    if not rest or rest[0].startswith("-"):
        raise UserError(
            f"{name} needs an experiment first: {prog} NAME, where NAME is one of experiments/NAME.py"
        )
    experiment_fn = find_experiment(rest[0])
    options, own = parse(experiment_fn, command.options, rest[1:], f"{prog} {rest[0]}", about)
    if own.data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = str(own.data_dir)
    experiment = experiment_fn(**options)
    if experiment.data.notice:
        Console().box("NOT THE DATA YOU MAY EXPECT", experiment.data.notice)
    return command.run(experiment, own)


def _run_on_folder(name: str, argv: Sequence[str]) -> int:
    command = RUN_COMMANDS[name]
    prog = f"python -m dl {name} {' '.join(command.words)}"
    about = " ".join((inspect.getdoc(command.run) or "").split())
    num_words = next((k for k, word in enumerate(argv) if word.startswith("-")), len(argv))
    words, rest = [Path(word) for word in argv[:num_words]], argv[num_words:]
    if rest and rest[0] in ("-h", "--help"):
        parse(lambda: None, command.options, rest, prog, about)
    if len(words) < len(command.words):
        raise UserError(
            f"{name} needs {command.words[len(words)]} first: {prog}, where RUN is a run's folder"
        )
    if len(command.words) == 1 and len(words) > 1:
        raise UserError(f"{name} takes one run's folder, and {words[1]} is one word too many")
    _, own = parse(lambda: None, command.options, rest, prog, about)
    if own.data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = str(own.data_dir)
    return command.run(words[0], words[1:], own)


def _help() -> str:
    commands: dict[str, Command | RunCommand] = {**COMMANDS, **RUN_COMMANDS}
    functions = {**{name: command.run for name, command in commands.items()}, **TOOLS, **RUN_TOOLS}
    width = max(map(len, functions))
    lines = {
        name: f"  {name:<{width}}  {(inspect.getdoc(function) or '').splitlines()[0]}"
        for name, function in functions.items()
    }
    return "\n".join(
        [
            "usage: python -m dl COMMAND EXPERIMENT [options of the experiment and of the command]",
            "",
            *(lines[name] for name in (*COMMANDS, *TOOLS)),
            "",
            "EXPERIMENT is NAME, experiments.NAME or experiments/NAME.py. `python -m dl COMMAND EXPERIMENT",
            "--help` lists the options; `python -m experiments.NAME` runs an experiment.",
            "",
            "usage: python -m dl report RUN [options]",
            "       python -m dl predict RUN IMAGE [IMAGE …] [options]",
            "       python -m dl compare RUN_A RUN_B [RUN_C …] [options]",
            "       python -m dl robustness RUN [options]",
            "",
            *(lines[name] for name in (*RUN_COMMANDS, *RUN_TOOLS)),
            "",
            "RUN is the folder that a run left, IMAGE a file or a folder of images.",
        ]
    )
