"""The command `baseline`: classical models on the data of an experiment, beside the network."""

import dataclasses
import sys
from pathlib import Path

from dl.cli.command import Call
from dl.cli.options import ComputeOptions
from dl.cli.run_commands import show
from dl.option_types import OutputFile, PositiveInt
from dl.runs.console import save_text
from dl.system.bucket import publish
from dl.system.files import named_path
from dl.system.text import printable


@dataclasses.dataclass(frozen=True)
class BaselineOptions(ComputeOptions):
    """Options of `baseline`.

    Attributes:
      run: Folder of a finished run on the same data. The best model is added to its result, beside the
        network. Default: no run.
      num_examples: Largest number of training examples that the models are fitted to. It bounds the time.
      markdown: Markdown file of the table. Default: no file.
    """

    run: Path | None = None
    num_examples: PositiveInt = 5_000
    markdown: OutputFile | None = None


def baseline(call: Call) -> int:
    """Fits classical models to the data of an experiment: what a network must beat.

    The models are a linear one, a linear support-vector machine, k nearest neighbours, a random forest and
    gradient boosting. Settings are chosen on the validation split, and so is the best model.
    """
    from dl.inference.load import open_run
    from dl.studies.classical import measure_classical

    options: BaselineOptions = call.own
    run = None if options.run is None else open_run(named_path(options.run))
    experiment = call.build()

    def say(line: str) -> None:
        print(printable(line), file=sys.stderr, flush=True)

    found = measure_classical(experiment, run, num_examples=options.num_examples, say=say)
    show([found.table], found.lines)
    if options.run is not None:
        publish(named_path(options.run) / "result.json", str(options.run))
    if options.markdown is not None:
        save_text(found.table.to_markdown(), options.markdown)
    return 0
