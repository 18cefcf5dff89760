"""The command `simplify`: a decision tree and a linear model that imitate a classifier."""

import contextlib
import dataclasses
import sys

from dl.cli.command import Call
from dl.cli.options import ComputeOptions
from dl.cli.run_commands import rebuild_for_use, show
from dl.option_types import OutputFile, PositiveInt, Seed
from dl.runs.console import save
from dl.sharding import make_mesh
from dl.stopping import FINAL_SPLIT
from dl.system.bucket import publish
from dl.system.files import named_path
from dl.system.text import printable, printable_text


@dataclasses.dataclass(frozen=True)
class SimplifyOptions(ComputeOptions):
    """Options of `simplify`.

    Attributes:
      split: Split on which fidelity is measured.
      max_depth: Largest depth of the decision tree.
      num_examples: Largest number of examples, of the training split and of the split.
      out: PNG file of the decision tree. Default: tree.png in the folder of the run.
      seed: Random seed of the decision tree.
      experiment: Name or path of the experiment. You need it only if dl cannot find the file that the run
        used. Default: the experiment named in the run.
    """

    split: str = FINAL_SPLIT
    max_depth: PositiveInt = 4
    num_examples: PositiveInt = 10_000
    out: OutputFile | None = None
    seed: Seed = 0
    experiment: str | None = None


def simplify(call: Call) -> int:
    """Fits a decision tree and a linear model to the predictions of a classifier, and draws the tree.

    Fidelity is the share of test examples for which a model predicts the same class as the network. Where it
    is low, the model does not explain the network.
    """
    from dl.analysis.explained_run import ExplainedRun
    from dl.analysis.surrogates import simplify as simplify_run
    from dl.training.result import Result

    options: SimplifyOptions = call.own
    rebuilt = rebuild_for_use(named_path(call.words[0]), options.experiment)
    with contextlib.redirect_stdout(sys.stderr):  # whatever code or libraries print meanwhile
        run = ExplainedRun(
            Result(rebuilt.experiment, rebuilt.run.result or {}, run=rebuilt.run, mesh=make_mesh())
        )
        found = simplify_run(
            run,
            options.split,
            max_depth=options.max_depth,
            num_examples=options.num_examples,
            seed=options.seed,
        )
    print(printable_text(found.tree_text()))
    lines = [
        f"{name}: {', '.join(f'{feature} {weight:+.2f}' for feature, weight in strongest)}"
        for name, strongest in found.strongest().items()
    ]
    print("Largest weights of the linear model")
    show([], lines[:20])
    show([found.table], [])
    out = options.out or rebuilt.run.folder / "tree.png"
    save(found.draw_tree, out)
    if options.out is None:
        publish(out, call.words[0])
    print(printable("A surrogate describes the network only as far as its fidelity goes."))
    return 0
