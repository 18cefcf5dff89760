"""`python -m dl COMMAND …`: looks at an experiment without running it, or at what a run left.

The commands stand in `experiment_commands` and `run_commands`; those here read their own arguments.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence

from dl.analysis.robustness import assess
from dl.cli.experiment_commands import COMMANDS, Command
from dl.cli.main import exit_status
from dl.cli.options import VERSION, parse, version_line
from dl.cli.run_commands import RUN_COMMANDS, RunCommand
from dl.errors import UserError
from dl.runs.console import Console, print_table
from dl.runs.find import find_experiment, hint, known_experiments
from dl.runs.provenance import build
from dl.studies.compare import compare_runs
from dl.studies.learning_curve import CurveOptions, learning_curve
from dl.studies.sweep import sweep_options
from dl.system.files import named_path
from dl.system.text import printable

HELP = ("-h", "--help")
_OF_TRAINING = ("train", "run", "fit", "start")  # what other projects call it


def compare(argv: Sequence[str]) -> int:
    """Shows how finished runs differ, and tests which is better: RUN_A RUN_B, or by seed A1,A2 B1,B2."""
    tables, lines = compare_runs(argv)
    for table in tables:
        print_table(table.to_rich())
    print("\n".join(map(printable, lines)))
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
    if argv and argv[0] in HELP:
        about = " ".join((inspect.getdoc(learning_curve) or "").partition("Returns:")[0].split())
        parse(lambda: None, CurveOptions, argv[:1], "python -m dl learning-curve EXPERIMENT", about)
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
    print("\n".join(map(printable, lines)))
    return 0


def list_experiments(argv: Sequence[str]) -> int:
    """Lists the experiments, each with the first line of its description."""
    if argv and argv[0] not in HELP:
        raise UserError(f"list takes no arguments, got {argv[0]!r}; write python -m dl list")
    known = known_experiments()
    width = max(map(len, known), default=0)
    for name, about in known.items():
        print(f"{name:<{width}}  {printable(about)}".rstrip())
    return 0


# Commands that read their own arguments.
TOOLS: dict[str, Callable[[Sequence[str]], int]] = {
    "sweep": sweep,
    "learning-curve": curve,
}
RUN_TOOLS: dict[str, Callable[[Sequence[str]], int]] = {"compare": compare, "robustness": robustness}
OTHERS: dict[str, Callable[[Sequence[str]], int]] = {"list": list_experiments}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its status; with 2 and one line on a user's mistake."""
    words = sys.argv[1:] if argv is None else argv
    sys.exit(exit_status(lambda: _run(words)))


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in HELP:
        print(_help())
        return 0 if argv else 2
    if argv[0] in VERSION:
        print(version_line())
        return 0
    name, *rest = argv
    if name in RUN_COMMANDS:
        return _run_on_folder(name, rest)
    if tool := {**TOOLS, **RUN_TOOLS, **OTHERS}.get(name):
        return tool(rest)
    if name not in COMMANDS:
        raise UserError(f"there is no command {name}; {_instead_of(name, rest)}")
    command, prog = COMMANDS[name], f"python -m dl {name}"
    about = " ".join((inspect.getdoc(command.run) or "").split())
    if rest and rest[0] in HELP:
        parse(lambda: None, command.options, rest[:1], f"{prog} EXPERIMENT", about)
    if not rest or rest[0].startswith("-"):
        raise UserError(
            f"{name} needs an experiment first: {prog} NAME, where NAME is one of experiments/NAME.py"
        )
    experiment_fn = find_experiment(rest[0])
    options, own = parse(experiment_fn, command.options, rest[1:], f"{prog} {rest[0]}", about)
    if own.data_dir is not None:
        os.environ["TFDS_DATA_DIR"] = str(own.data_dir)
    experiment = build(experiment_fn, options)
    if experiment.data.notice:
        Console().box("NOT THE DATA YOU MAY EXPECT", experiment.data.notice)
    return command.run(experiment, own)


def _instead_of(name: str, rest: Sequence[str]) -> str:
    """Returns what to type in place of a word that is no command."""
    known = known_experiments()
    if name in _OF_TRAINING:
        experiment = next((word.removeprefix("experiments.") for word in rest), "")
        return f"to train, type python -m experiments.{experiment if experiment in known else 'NAME'}"
    if name.removeprefix("experiments.") in known:
        return f"to train, type python -m experiments.{name.removeprefix('experiments.')}"
    return hint(name, [*COMMANDS, *TOOLS, *RUN_COMMANDS, *RUN_TOOLS, *OTHERS])


def _run_on_folder(name: str, argv: Sequence[str]) -> int:
    command = RUN_COMMANDS[name]
    prog = f"python -m dl {name} {' '.join(command.words)}"
    about = " ".join((inspect.getdoc(command.run) or "").split())
    num_words = next((k for k, word in enumerate(argv) if word.startswith("-")), len(argv))
    words, rest = [named_path(word) for word in argv[:num_words]], argv[num_words:]
    if rest and rest[0] in HELP:
        parse(lambda: None, command.options, rest[:1], prog, about)
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
    functions = {
        **{name: command.run for name, command in commands.items()},
        **TOOLS,
        **RUN_TOOLS,
        **OTHERS,
    }
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
            "",
            "usage: python -m dl list",
            "       python -m dl --version",
            "",
            *(lines[name] for name in OTHERS),
        ]
    )
