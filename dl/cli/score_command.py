"""The command `score`: BLEU and chrF of a translation model."""

import contextlib
import csv
import dataclasses
import io
import sys

from dl.cli.command import Call
from dl.cli.options import ComputeOptions
from dl.cli.run_commands import rebuild_for_use
from dl.option_types import OutputFile, PositiveInt
from dl.runs.console import print_table, save_text
from dl.runs.tables import Table
from dl.sharding import make_mesh
from dl.stopping import FINAL_SPLIT
from dl.system.bucket import publish
from dl.system.files import named_path
from dl.system.text import csv_cell, printable


@dataclasses.dataclass(frozen=True)
class ScoreOptions(ComputeOptions):
    """Options of `score`.

    Attributes:
      split: Split that is translated.
      num_beams: Number of beams of the beam search; 1 always chooses the most probable token.
      length_penalty: Exponent of the length of a translation in its score in the beam search.
      csv: CSV file of sources, references and translations. Default: no file.
      experiment: Name or path of the experiment. You need it only if dl cannot find the file that the run
        used. Default: the experiment named in the run.
    """

    split: str = FINAL_SPLIT
    num_beams: PositiveInt = 5
    length_penalty: float = 1.0
    csv: OutputFile | None = None
    experiment: str | None = None


def score(call: Call) -> int:
    """Translates a split with a trained model, and prints BLEU and chrF beside a word-for-word translation.

    The scores are computed by sacreBLEU and added to result.json with its signatures. The intervals are
    those of a bootstrap over sentences.
    """
    from dl.analysis.translation import score_translation  # the loop, orbax
    from dl.runs.scores import add_scores
    from dl.training.result import Result

    options: ScoreOptions = call.own
    rebuilt = rebuild_for_use(named_path(call.words[0]), options.experiment)
    result = rebuilt.run.finished_result()
    with contextlib.redirect_stdout(sys.stderr):  # whatever code or libraries print meanwhile
        run = Result(rebuilt.experiment, result, run=rebuilt.run, mesh=make_mesh())
        found = score_translation(
            run, options.split, num_beams=options.num_beams, length_penalty=options.length_penalty
        )
    add_scores(rebuilt.run, options.split, found.scores, found.baseline)
    publish(rebuilt.run.folder / "result.json", call.words[0])
    rows = []
    for name, figure in found.scores.figures.items():
        others, difference = found.baseline.scores.figures[name], found.baseline.differences[name].interval
        rows.append(
            (
                name,
                f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]",
                f"{others.value:.2f} [{others.low:.2f}, {others.high:.2f}]",
                f"{difference.estimate:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]",
            )
        )
    header = ("metric", "model", "word for word", "difference")
    title = f"Translations of {options.split}, {len(found.sources):,} sentences, with 95 % intervals"
    print_table(Table(title, header, rows).to_rich())
    for name, signature in found.scores.signatures.items():
        print(f"{name}: {printable(signature)}")
    if options.csv is not None:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["source", "reference", "translation"])
        for row in zip(found.sources, found.references, found.translations, strict=True):
            writer.writerow(map(csv_cell, row))
        save_text(text.getvalue(), options.csv)
    return 0
