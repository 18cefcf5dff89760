"""Commands about finished runs: report, predictions, comparison, robustness."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dl.cli.command import Call
from dl.cli.options import CommandOptions, ComputeOptions, NoOptions
from dl.errors import UserError
from dl.option_types import OutputFile, PositiveInt, Seed
from dl.runs.console import Console, print_table, save, save_text
from dl.runs.folder import REPORT
from dl.sharding import make_mesh
from dl.stopping import FINAL_SPLIT
from dl.system.bucket import publish
from dl.system.files import named_path
from dl.system.text import printable

if TYPE_CHECKING:
    from dl.inference.load import Rebuilt
    from dl.runs.tables import Table


@dataclasses.dataclass(frozen=True)
class ReportOptions(CommandOptions):
    """Options of `report`.

    Attributes:
      out: HTML file to write. Default: report.html in the folder of the run.
      experiment: Name or path of the experiment. You need it only if dl cannot find the file that the run
        used. Default: the experiment named in the run.
    """

    out: OutputFile | None = None
    experiment: str | None = None


def report(call: Call) -> int:
    """Writes the report of a run or a cross-validation: one HTML file of settings, curves and metrics.

    If a classifier has more than 50 classes, a CSV file next to it has the metrics of all of them.
    """
    from dl.inference.load import open_run, rebuild
    from dl.report import FOLDS, write_folds_report, write_report  # Jinja

    options: ReportOptions = call.own
    folder = named_path(call.words[0])
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
    for path in write_report(folder, out, experiment, trouble, is_explained=True):
        print(f"wrote {printable(path)}")
        if options.out is None:
            publish(path, call.words[0])
    return 0


@dataclasses.dataclass(frozen=True)
class PredictOptions(ComputeOptions):
    """Options of `predict`.

    Attributes:
      top: Number of classes to name for each image or text, the most probable first.
      csv: CSV file of the predictions. Default: the predictions are printed.
      experiment: Name or path of the experiment. You need it only if dl cannot find the file that the run
        used. Default: the experiment named in the run.
    """

    top: PositiveInt = 3
    csv: OutputFile | None = None
    experiment: str | None = None


def rebuild_for_use(folder: Path, experiment: str | None) -> "Rebuilt":
    """Rebuilds a run of one seed without its data; a warning goes to the standard error.

    Raises:
      UserError: as `rebuild`, or the run trained several seeds.
    """
    from dl.data.recorded import remembering
    from dl.inference.load import open_run, rebuild

    # Whatever code or libraries print meanwhile is not a part of the output.
    with contextlib.redirect_stdout(sys.stderr), remembering(open_run(folder).record, folder):
        rebuilt = rebuild(folder, experiment)
    if rebuilt.num_seeds > 1:
        raise UserError(
            f"{folder} trained {rebuilt.num_seeds} seeds at the same time; give a run of one seed"
        )
    if rebuilt.warning:
        print(f"warning: {printable(rebuilt.warning)}", file=sys.stderr)
    return rebuilt


def predict(call: Call) -> int:
    """Prints the three most probable classes of an image or a text. For several inputs it prints CSV.

    The input of a classifier of texts is a text, or a file with a text in each line. The training data are
    not needed. The exit status is 1 if an input cannot be read.
    """
    from dl.inference import predict as prediction  # the loop, orbax

    options: PredictOptions = call.own
    folder, words = named_path(call.words[0]), call.words[1:]
    rebuilt = rebuild_for_use(folder, options.experiment)
    with contextlib.redirect_stdout(sys.stderr):
        classifier = prediction.Classifier(rebuilt.experiment, rebuilt.run, make_mesh())
    inputs = classifier.inputs(words)
    refused: list[UserError] = []

    def refuse(error: UserError) -> None:
        refused.append(error)
        print(f"error: {printable(error)}", file=sys.stderr)

    predicted = prediction.predict_inputs(classifier, inputs, refuse)
    names, what = classifier.class_names, "text" if classifier.reads_text else "image"
    if options.csv is not None:
        save(lambda file: prediction.write_csv_file(file, what, predicted, names, options.top), options.csv)
        return 1 if refused else 0
    try:
        if len(inputs) > 1 or (not classifier.reads_text and os.path.isdir(words[0])):
            prediction.write_csv(sys.stdout, what, predicted, names, options.top)
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
class CompareOptions(NoOptions):
    """Options of `compare`.

    Attributes:
      markdown: Markdown file of the tables. Default: no file.
      latex: LaTeX file of the tables. Default: no file.
    """

    markdown: OutputFile | None = None
    latex: OutputFile | None = None


def compare(call: Call) -> int:
    """Shows how the setup of finished runs differs, and tests whether their metrics differ.

    The first run is compared with each of the others. To compare several seeds, write
    RUN1,RUN2,RUN3 in place of one run. A run is called better only if the 95 % interval of the paired
    difference excludes zero and the test rejects equality. If there is more than one comparison, each
    interval is made wider (Bonferroni), so that all of them are correct together with a confidence of 95 %.
    """
    from dl.studies.compare import compare_runs  # SciPy

    options: CompareOptions = call.own
    sides = [[named_path(name) for name in word.split(",") if name] for word in call.words]
    found = compare_runs(*sides)
    show(found.tables, found.lines)
    _save_tables(found.tables, options.markdown, options.latex)
    return 0


@dataclasses.dataclass(frozen=True)
class RobustnessOptions(ComputeOptions):
    """Options of `robustness`.

    Attributes:
      split: Split whose images are corrupted.
      baseline: Folder of a run on the same data. The errors are divided by its errors, which gives mCE.
        Default: no baseline.
      seed: Random seed of the corruptions.
      preview: PNG file of a few images with every corruption at every severity. Default: no file.
      markdown: Markdown file of the table. Default: no file.
      latex: LaTeX file of the table. Default: no file.
      experiment: Name or path of the experiment. You need it only if dl cannot find the file that the run
        used. Default: the experiment named in the run.
      baseline_experiment: Name or path of the experiment of the baseline. You need it only if dl cannot find
        the file that the baseline used. Default: the experiment named in the baseline.
    """

    split: str = FINAL_SPLIT
    baseline: Path | None = None
    seed: Seed = 0
    preview: OutputFile | None = None
    markdown: OutputFile | None = None
    latex: OutputFile | None = None
    experiment: str | None = None
    baseline_experiment: str | None = None


def robustness(call: Call) -> int:
    """Measures a finished classifier on images that are corrupted in ten ways, each at five severities.

    If a baseline is given, the errors are divided by the errors of the baseline. This gives mCE and relative
    mCE (Hendrycks & Dietterich 2019). The results are stored in robustness.json in the folder of the run.
    """
    from dl.analysis.robustness import assess, preview  # the loop, orbax

    options: RobustnessOptions = call.own

    def say(line: str) -> None:
        print(printable(line), file=sys.stderr, flush=True)

    found = assess(
        named_path(call.words[0]),
        split=options.split,
        baseline=None if options.baseline is None else named_path(options.baseline),
        seed=options.seed,
        experiment=options.experiment,
        baseline_experiment=options.baseline_experiment,
        say=say,
    )
    publish(found.subject.run.robustness_path, call.words[0])
    Console().notice(found.subject.experiment.data.notice)
    show([found.table], found.lines)
    if options.preview is not None:
        save(lambda file: preview(found.subject, options.seed).save(file, "PNG"), options.preview)
    _save_tables([found.table], options.markdown, options.latex)
    return 0


def show(tables: Sequence["Table"], lines: Sequence[str]) -> None:
    """Prints tables, then lines."""
    for table in tables:
        print_table(table.to_rich())
    print("\n".join(map(printable, lines)))


def _save_tables(tables: Sequence["Table"], markdown: Path | None, latex: Path | None) -> None:
    if markdown is not None:
        save_text("\n\n".join(table.to_markdown() for table in tables), markdown)
    if latex is not None:
        save_text("\n\n".join(table.to_latex() for table in tables), latex)
