"""Commands about what a run left: its report again, predictions for images.

A command is a function, its own options, and a line in `RUN_COMMANDS`; its work has a module of its own.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dl.cli.options import CommandOptions
from dl.data.recorded import remembering
from dl.errors import UserError
from dl.inference.load import open_run, rebuild
from dl.option_types import OutputFile, PositiveInt
from dl.runs.console import save
from dl.runs.folder import REPORT
from dl.sharding import make_mesh
from dl.system.text import printable


@dataclasses.dataclass(frozen=True)
class ReportOptions(CommandOptions):
    """Options of `report`.

    Attributes:
      out: the HTML file to write. None: report.html in the run's folder.
      experiment: NAME or path of the experiment's code, where it is no longer where the run found it.
    """

    out: OutputFile | None = None
    experiment: str | None = None


def report(folder: Path, paths: Sequence[Path], options: ReportOptions) -> int:
    """Writes the report of a run, or of a cross-validation, again: one HTML file with all that it left."""
    from dl.report import FOLDS, write_folds_report, write_report  # Jinja

    if not (folder / "run.json").exists() and (folder / FOLDS).exists():
        out = options.out or folder / REPORT
        write_folds_report(folder, out)
        print(f"wrote {printable(out)}")
        return 0
    out = options.out or open_run(folder).report_path
    experiment, trouble = None, []
    try:
        rebuilt = rebuild(folder, options.experiment)
        experiment, trouble = rebuilt.experiment, [f"Certainty: {rebuilt.warning}."] * bool(rebuilt.warning)
    except Exception as error:  # neither its code nor its data need be on this machine, or fit any more
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        trouble = [f"Layers and pictures: {kind}{error}."]
    write_report(folder, out, experiment, trouble)
    print(f"wrote {printable(out)}")
    return 0


@dataclasses.dataclass(frozen=True)
class PredictOptions(CommandOptions):
    """Options of `predict`.

    Attributes:
      top: classes to name for each image.
      csv: a file to write the predictions to.
      experiment: NAME or path of the experiment's code, where it is no longer where the run found it.
    """

    top: PositiveInt = 3
    csv: OutputFile | None = None
    experiment: str | None = None


def predict(folder: Path, paths: Sequence[Path], options: PredictOptions) -> int:
    """Prints the class of images, with its probability; of several images or a folder as CSV.

    The training data need not be there. Exit status 1 if an image cannot be read.
    """
    from dl.inference import predict as prediction  # the loop, orbax

    files = prediction.image_files(paths)
    # Whatever code or libraries print meanwhile is not a part of the CSV.
    with contextlib.redirect_stdout(sys.stderr), remembering(open_run(folder).record):
        rebuilt = rebuild(folder, options.experiment)
    if rebuilt.num_seeds > 1:
        raise UserError(
            f"{folder} trained {rebuilt.num_seeds} seeds at the same time; predict with a run of one"
        )
    if rebuilt.warning:
        print(f"warning: {printable(rebuilt.warning)}", file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):
        classifier = prediction.Classifier(rebuilt.experiment, rebuilt.run, make_mesh())
    refused: list[UserError] = []

    def refuse(error: UserError) -> None:
        refused.append(error)
        print(f"error: {printable(error)}", file=sys.stderr)

    predicted = prediction.predict_files(classifier, files, refuse)
    names = classifier.class_names
    if options.csv is not None:
        save(lambda file: prediction.write_csv_file(file, predicted, names, options.top), options.csv)
        return 1 if refused else 0
    try:
        if len(files) > 1 or paths[0].is_dir():
            prediction.write_csv(sys.stdout, predicted, names, options.top)
        else:
            for _, probabilities_C in predicted:
                for name, probability in prediction.best_classes(probabilities_C, names, options.top):
                    print(f"{probability:8.4f}  {printable(name)}")
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough, as `head` has. Python flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if refused else 0


@dataclasses.dataclass(frozen=True)
class RunCommand:
    """A command about what a run left.

    Attributes:
      run: from the run's folder, further paths and the options to the exit status; its docstring is the help.
      options: as of a `Command`.
      words: what is written before the options.
    """

    run: Callable[[Path, Sequence[Path], Any], int]
    options: type[CommandOptions]
    words: tuple[str, ...] = ("RUN",)


RUN_COMMANDS = {
    "report": RunCommand(report, ReportOptions),
    "predict": RunCommand(predict, PredictOptions, ("RUN", "IMAGE")),
}
