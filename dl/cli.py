"""`python -m dl COMMAND …`: looks at an experiment without running it, or at what a run left.

A command is a function and its own options, a dataclass, and a line in `COMMANDS` or `RUN_COMMANDS`; its work
stands in a module of its own.
"""

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole

from dl.compare import compare_runs
from dl.console import Console
from dl.debugging import overfit
from dl.errors import UserError
from dl.experiment import Experiment
from dl.learning_curve import learning_curve
from dl.lookup import find_experiment, hint
from dl.options import PositiveFloat, PositiveInt, parse
from dl.rate_finder import find_learning_rate, plot_rates
from dl.rebuild import open_run, rebuild
from dl.robustness import assess
from dl.sharding import make_mesh
from dl.signals import Stopped
from dl.summary import experiment_layers
from dl.sweep import sweep_options
from dl.tabulate import format_layers

MIN_WIDTH = 160  # of a table that no terminal limits


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every command.

    Attributes:
      data_dir: the folder of prepared data sets. None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    """

    data_dir: Path | None = None


def summary(experiment: Experiment, options: Options) -> int:
    """Prints every layer with its shapes, parameters and forward FLOPs, for one example."""
    layers = experiment_layers(experiment)
    if not layers:
        raise UserError("the loss of this experiment calls no Linen module; there are no layers to show")
    _print_table(format_layers(layers, f"{layers[0].kind}, one example; a multiply-add is 2 FLOPs"))
    return 0


@dataclasses.dataclass(frozen=True)
class OverfitOptions(Options):
    """Options of `overfit`.

    Attributes:
      steps: updates at most.
      threshold: the loss to fall under.
    """

    steps: PositiveInt = 300
    threshold: PositiveFloat = 1e-3


def check_overfit(experiment: Experiment, options: OverfitOptions) -> int:
    """Trains on one batch: a sound experiment brings its loss down to nothing. Exit status 1 if not.

    Augmentation is off, and dropout draws the same in each step; the optimizer is the experiment's own.
    """
    shown = {factor * 10**power for factor in (1, 2, 5) for power in range(7)} | {0}

    def watch(step: int, loss: float) -> None:
        if step in shown:
            print(f"step {step:>5,}  loss {loss:.5f}", flush=True)

    result = overfit(experiment, options.steps, options.threshold, watch)
    last = f"loss {result.losses[-1]:.3g} on {result.num_examples} examples"
    steps = len(result.losses) - 1
    if result.has_passed:
        print(f"PASS: {last} after {steps:,} steps, under {options.threshold:g}")
        return 0
    print(f"FAIL: {last} after {steps:,} steps, not under {options.threshold:g}; the likeliest causes:")
    for number, cause in enumerate(result.causes, 1):
        print(f"  {number}. {cause}")
    return 1


@dataclasses.dataclass(frozen=True)
class RateOptions(Options):
    """Options of `lr-find`.

    Attributes:
      low: the first rate.
      high: the last rate.
      steps: from one to the other.
      plot: a PNG file to draw the curve to.
    """

    low: PositiveFloat = 1e-6
    high: PositiveFloat = 10.0
    steps: PositiveInt = 100
    plot: Path | None = None


def find_rate(experiment: Experiment, options: RateOptions) -> int:
    """Trains a little while the learning rate grows, and suggests where the loss falls fastest.

    Exit status 1 if it never fell.
    """
    test = find_learning_rate(experiment, options.low, options.high, options.steps)
    every = max(len(test.rates) // 12, 1)
    for rate, loss in list(zip(test.rates, test.smoothed, strict=True))[::every]:
        print(f"rate {rate:8.2e}  loss {loss:.4f}")
    if test.has_diverged:
        print(f"the loss exploded after rate {test.rates[-1]:.2e}")
    if options.plot is not None:
        _save(lambda path: plot_rates(test, "learning-rate range test").savefig(path, dpi=120), options.plot)
    if test.suggested is None:
        print(
            f"FAIL: the loss never fell between {options.low:g} and {options.high:g}; widen the range, or "
            "try `python -m dl overfit`"
        )
        return 1
    print(
        f"suggested learning rate {test.suggested:.2g}, the steepest descent; the loss falls from "
        f"{test.low:.2g} and is lowest at {test.high:.2g}"
    )
    return 0


@dataclasses.dataclass(frozen=True)
class PreviewOptions(Options):
    """Options of `augment-preview`.

    Attributes:
      num_examples: rows, from the first training batch.
      num_draws: columns beside the stored image; one an epoch.
      out: the PNG file to write.
    """

    num_examples: PositiveInt = 8
    num_draws: PositiveInt = 7
    out: Path = Path("augment.png")


def preview_augmentation(experiment: Experiment, options: PreviewOptions) -> int:
    """Draws examples as stored, and as the first epochs of the training would see them."""
    from dl.preview import augmented_examples, contact_sheet  # Pillow

    stored, drawn = augmented_examples(experiment, options.num_examples, options.num_draws)
    _save(lambda path: contact_sheet(stored, drawn).save(path, "PNG"), options.out)
    return 0


@dataclasses.dataclass(frozen=True)
class ReportOptions(Options):
    """Options of `report`.

    Attributes:
      out: the HTML file to write. None: report.html in the run's folder.
      experiment: NAME or path of the experiment's code, where it is no longer where the run found it.
    """

    out: Path | None = None
    experiment: str | None = None


def report(folder: Path, paths: Sequence[Path], options: ReportOptions) -> int:
    """Writes the report of a run again: one HTML file with all that the run left."""
    from dl.report import write_report  # Jinja

    out = options.out or open_run(folder).report_path
    experiment, trouble = None, []
    try:
        rebuilt = rebuild(folder, options.experiment)
        experiment, trouble = rebuilt.experiment, [f"Certainty: {rebuilt.warning}."] * bool(rebuilt.warning)
    except Exception as error:  # neither its code nor its data need be on this machine, or fit any more
        trouble = [f"Layers and pictures: {type(error).__name__}: {error}."]
    write_report(folder, out, experiment, trouble)
    print(f"wrote {out}")
    return 0


@dataclasses.dataclass(frozen=True)
class PredictOptions(Options):
    """Options of `predict`.

    Attributes:
      top: classes to name for each image.
      csv: a file to write the predictions to.
      experiment: NAME or path of the experiment's code, where it is no longer where the run found it.
    """

    top: PositiveInt = 3
    csv: Path | None = None
    experiment: str | None = None


def predict(folder: Path, paths: Sequence[Path], options: PredictOptions) -> int:
    """Prints the class of images, with its probability; of several images or a folder as CSV.

    Exit status 1 if an image cannot be read.
    """
    from dl import predict as prediction  # the loop, orbax

    files = prediction.image_files(paths)
    rebuilt = rebuild(folder, options.experiment)
    if rebuilt.num_seeds > 1:
        raise UserError(
            f"{folder} trained {rebuilt.num_seeds} seeds at the same time; predict with a run of one"
        )
    if rebuilt.warning:
        print(f"warning: {rebuilt.warning}", file=sys.stderr)
    classifier = prediction.Classifier(rebuilt.experiment, rebuilt.run, make_mesh())
    refused: list[UserError] = []

    def refuse(error: UserError) -> None:
        refused.append(error)
        print(f"error: {error}", file=sys.stderr)

    predicted = prediction.predict_files(classifier, files, refuse)
    names = classifier.class_names
    if options.csv is not None:
        _save(lambda path: prediction.write_csv_file(path, predicted, names, options.top), options.csv)
    elif len(files) > 1 or paths[0].is_dir():
        prediction.write_csv(sys.stdout, predicted, names, options.top)
    else:
        for _, probabilities_C in predicted:
            for name, probability in prediction.best_classes(probabilities_C, names, options.top):
                print(f"{probability:8.4f}  {name}")
    return 1 if refused else 0


@dataclasses.dataclass(frozen=True)
class Command:
    """A command about one experiment.

    Attributes:
      run: from the experiment and the options to the exit status; its docstring is the help text.
      options: a dataclass derived from `Options`, with a default for each field.
    """

    run: Callable[[Experiment, Any], int]
    options: type[Options]


@dataclasses.dataclass(frozen=True)
class RunCommand:
    """A command about what a run left.

    Attributes:
      run: from the run's folder, further paths and the options to the exit status; its docstring is the help.
      options: as of a `Command`.
      words: what is written before the options.
    """

    run: Callable[[Path, Sequence[Path], Any], int]
    options: type[Options]
    words: tuple[str, ...] = ("RUN",)


COMMANDS = {
    "summary": Command(summary, Options),
    "overfit": Command(check_overfit, OverfitOptions),
    "lr-find": Command(find_rate, RateOptions),
    "augment-preview": Command(preview_augmentation, PreviewOptions),
}
RUN_COMMANDS = {
    "report": RunCommand(report, ReportOptions),
    "predict": RunCommand(predict, PredictOptions, ("RUN", "IMAGE")),
}


def compare(argv: Sequence[str]) -> int:
    """Shows how finished runs differ, and tests which is better: RUN_A RUN_B, or by seed A1,A2 B1,B2."""
    tables, lines = compare_runs(argv)
    for table in tables:
        _print_table(table.to_rich())
    print("\n".join(lines))
    return 0


def sweep(argv: Sequence[str]) -> int:
    """Searches the options of an experiment: EXPERIMENT learning_rate=log:1e-4:1e-1 batch_size=32,64."""
    has_name = bool(argv) and not argv[0].startswith("-")
    table, line = sweep_options(find_experiment(argv[0]) if has_name else None, argv[has_name:])
    _print_table(table.to_rich())
    print(line)
    return 0


def curve(argv: Sequence[str]) -> int:
    """Trains with more and more of the data, and fits a power law to the error: EXPERIMENT."""
    if not argv or argv[0].startswith("-"):
        raise UserError("learning-curve needs an experiment first: python -m dl learning-curve NAME")
    table, line = learning_curve(find_experiment(argv[0]), argv[1:])
    _print_table(table.to_rich())
    print(line)
    return 0


def robustness(argv: Sequence[str]) -> int:
    """Measures a finished classifier on corrupted images, by corruption and severity, and mCE: RUN."""
    table, lines = assess(argv)
    _print_table(table.to_rich())
    print("\n".join(lines))
    return 0


# Commands that read their own arguments.
TOOLS: dict[str, Callable[[Sequence[str]], int]] = {
    "compare": compare,
    "robustness": robustness,
    "sweep": sweep,
    "learning-curve": curve,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its status; with 2 and one line on a user's mistake."""
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        status = 128 + stopped.number
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    name, *rest = argv
    if name in RUN_COMMANDS:
        return _run_on_folder(name, rest)
    if name in TOOLS:
        return TOOLS[name](rest)
    if name not in COMMANDS:
        raise UserError(f"there is no command {name}; {hint(name, [*COMMANDS, *RUN_COMMANDS, *TOOLS])}")
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
    functions = {**{name: command.run for name, command in commands.items()}, **TOOLS}
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
            "",
            *(lines[name] for name in RUN_COMMANDS),
            "",
            "RUN is the folder that a run left, IMAGE a file or a folder of images.",
        ]
    )


def _save(write: Callable[[Path], Any], path: Path) -> None:
    try:
        write(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); choose another file"
        ) from None
    print(f"wrote {path}")


def _print_table(table: Any) -> None:
    console = RichConsole(highlight=False)
    if not console.is_terminal:
        console = RichConsole(highlight=False, width=max(console.width, MIN_WIDTH))
    console.print(table)
