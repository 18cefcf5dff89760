"""The command `explain`: what the prediction of a classifier for one input rests on."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl.analysis.explanation import Method
from dl.cli.command import Call
from dl.cli.options import ComputeOptions
from dl.cli.run_commands import rebuild_for_use
from dl.errors import UserError
from dl.option_types import NonNegativeInt, OutputFile, PositiveInt, Seed
from dl.runs.console import save, save_text
from dl.sharding import make_mesh
from dl.stopping import FINAL_SPLIT
from dl.system.bucket import publish
from dl.system.files import named_path
from dl.system.text import printable

if TYPE_CHECKING:
    from dl.analysis.explained_run import ExplainedRun
    from dl.analysis.explanation import Explanation


@dataclasses.dataclass(frozen=True)
class ExplainOptions(ComputeOptions):
    """Options of `explain`.

    Attributes:
      method: Method of the explanation. Default: integrated-gradients for an image, occlusion for a text, and
        shap for a row of numbers.
      target: Name or number of the class to explain. Default: the most probable class.
      example: Number of an example of the split to explain in place of an INPUT. It needs the data.
      split: Split that --example counts in.
      layer: Path of the layer for grad-cam. Default: the last convolution.
      top: Number of tokens, columns or regions to print.
      out: File of the explanation: PNG for an image or a row, HTML for a text. Default: explanation.png or
        explanation.html in the folder of the run.
      seed: Random seed of the samples of smoothgrad, lime and shap.
      experiment: Name or path of the experiment. You need it only if dl cannot find the file that the run
        used. Default: the experiment named in the run.
    """

    method: Method | None = None
    target: str | None = None
    example: NonNegativeInt | None = None
    split: str = FINAL_SPLIT
    layer: str | None = None
    top: PositiveInt = 5
    out: OutputFile | None = None
    seed: Seed = 0
    experiment: str | None = None


def explain(call: Call) -> int:
    """Shows what the prediction of a classifier for one image, text or row of numbers rests on.

    A row is written as numbers, such as 5.1,3.5,1.4, or as NAME=VALUE of some columns; the others get their
    mean in the training split. --example explains an example of the data. An explanation describes the
    model, not the world.
    """
    from dl.analysis.explain import explain as explain_features
    from dl.analysis.explained_run import ExplainedRun
    from dl.training.result import Result

    options: ExplainOptions = call.own
    words = call.words[1:]
    if bool(words) == (options.example is not None):
        given = "both an INPUT and --example" if words else "neither an INPUT nor --example"
        raise UserError(f"explain got {given}; give one of them")
    rebuilt = rebuild_for_use(named_path(call.words[0]), options.experiment)
    with contextlib.redirect_stdout(sys.stderr):  # whatever code or libraries print meanwhile
        run = ExplainedRun(
            Result(rebuilt.experiment, rebuilt.run.result or {}, run=rebuilt.run, mesh=make_mesh())
        )
        ending = ".html" if run.form == "text" else ".png"
        out = options.out or rebuilt.run.folder / f"explanation{ending}"
        if out.suffix.lower() != ending:
            raise UserError(f"--out {out} must end in {ending}, because the model reads a {run.form}")
        if options.example is not None:
            features = run.example(options.split, options.example)
        else:
            features = run.read(_input(run, words))
        target = None if options.target is None else _class(run.class_names, options.target)
        found = explain_features(
            run, features, options.method, target, seed=options.seed, layer=options.layer
        )
    _show(found, options.top)
    _write(found, out)
    if options.out is None:
        publish(out, call.words[0])
    return 0


def _show(found: "Explanation", top: int) -> None:
    from dl.report.explanation_picture import headline
    from dl.report.explanation_text import to_ansi

    print(printable(headline(found)))
    print(printable(f"{found.method}: {found.basis}"))
    for name, value in found.figures.items():
        print(f"{name}: {value:.2g}")
    if found.form == "text" and sys.stdout.isatty():
        print(to_ansi(found))
    if not found.attributions.any():
        print("all weights are zero: nothing that this method sees raises the score of the class")
        return
    strongest = found.by_region() if found.form == "image" else found.strongest(len(found.is_shown))
    for name, weight in strongest[:top]:
        print(f"{weight:+10.4g}  {printable(name)}")


def _write(found: "Explanation", path: Path) -> None:
    from dl.report.explanation_picture import write_picture
    from dl.report.explanation_text import to_html

    if found.form == "text":
        save_text(to_html(found), path)
    else:
        save(lambda file: write_picture(found, file), path)


def _input(run: "ExplainedRun", words: Sequence[str]) -> Path | str | np.ndarray:
    """Returns what words of the command line stand for: a path, a text, or the numbers of a row."""
    if run.form == "text":
        text = " ".join(words)
        if not text.strip():
            raise UserError("the text is empty; give one with at least one word")
        return text
    if run.form == "row":
        return _row(run, [part for word in words for part in word.replace(",", " ").split()])
    if len(words) > 1:
        raise UserError(f"explain takes one image, and got {len(words)}; give one of them")
    path = named_path(words[0])
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"{printable(path)} {what}; give an image")
    return path


def _row(run: "ExplainedRun", parts: Sequence[str]) -> np.ndarray:
    names = list(run.input_names)
    if not any("=" in part for part in parts):
        if len(parts) != len(names):
            raise UserError(
                f"the row has {len(parts)} numbers; the model reads {len(names)}: {', '.join(names)[:200]}"
            )
        return np.array([_number(part) for part in parts])
    values = run.mean_row()
    for part in parts:
        name, _, value = part.partition("=")
        if name not in names:
            raise UserError(f"there is no column {name!r}; the columns are {', '.join(names)[:200]}")
        values[names.index(name)] = _number(value)
    return values


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{word!r} is not a number; write a row as 5.1,3.5,1.4 or NAME=VALUE")
    return value


def _class(names: Sequence[str], word: str) -> int:
    if word in names:
        return list(names).index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise UserError(
        f"--target {word!r} is not a class; choose one of {shown}, or a number below {len(names)}"
    )
