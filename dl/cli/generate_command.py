"""The command `generate`: a trained language model writes text."""

import contextlib
import dataclasses
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dl.cli.command import Call
from dl.cli.options import ComputeOptions
from dl.cli.run_commands import rebuild_for_use
from dl.option_types import NonNegativeFloat, PositiveFloat, PositiveInt, Seed
from dl.ranges import Range
from dl.sharding import make_mesh
from dl.system.files import named_path
from dl.system.text import printable_text

if TYPE_CHECKING:
    from dl.generation.writer import Writer


@dataclasses.dataclass(frozen=True)
class GenerateOptions(ComputeOptions):
    r"""Options of `generate`.

    Attributes:
      max_tokens: Largest number of tokens of a text.
      temperature: Divisor of the logits. 0 always chooses the most probable token.
      top_k: Number of most probable tokens that can be chosen. Default: all.
      top_p: Sum of the probabilities of the most probable tokens that can be chosen. Default: all.
      min_p: Smallest probability that can be chosen, as a fraction of the largest one. Default: all.
      repetition_penalty: Divisor of the positive logits of tokens that the text has already; 1 is off.
      num_samples: Number of texts for each prompt.
      num_beams: Number of beams of a beam search; 1 is sampling.
      length_penalty: Exponent of the length of a text in its score in a beam search.
      stop: Strings that end a text. Write \n for a new line.
      seed: Random seed.
      experiment: Name or path of the experiment. You need it only if dl cannot find the file that the run
        used. Default: the experiment named in the run.
    """

    max_tokens: PositiveInt = 256
    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Range(0, 1, above_low=True)] | None = None
    min_p: Annotated[float, Range(0, 1)] | None = None
    repetition_penalty: PositiveFloat = 1.0
    num_samples: PositiveInt = 1
    num_beams: PositiveInt = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: Seed = 0
    experiment: str | None = None


def generate(call: Call) -> int:
    """Prints each prompt and the text that the model of a run writes after it, as it is written.

    In place of a run, give a folder with published weights in the layout of Hugging Face. Several texts are
    separated by a line of dashes. A sequence-to-sequence model prints a translation of each
    prompt instead. The training data are not needed.
    """
    from dl.inference.published import load_writer  # safetensors

    options: GenerateOptions = call.own
    folder, prompts = named_path(call.words[0]), call.words[1:]
    others = {"experiment", *(field.name for field in dataclasses.fields(ComputeOptions))}
    sampling = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if field.name not in others
    }
    sampling["stop"] = tuple(text.replace(r"\n", "\n") for text in options.stop)
    with contextlib.redirect_stdout(sys.stderr):
        is_published = (folder / "config.json").is_file() and not (folder / "run.json").exists()
        writer = load_writer(folder) if is_published else _writer_of(folder, options.experiment)
        if len(prompts) * options.num_samples == 1:
            texts = iter([writer.stream(prompts[0], **sampling)])
        else:
            texts = iter([iter([one.text]) for one in writer.generate(prompts, **sampling)])
    for index, (prompt, _) in enumerate(itertools.product(prompts, range(options.num_samples))):
        shown = "" if writer.is_translation else printable_text(prompt)
        print("---\n" * (index > 0) + shown, end="", flush=True)
        for piece in next(texts):
            print(printable_text(piece), end="", flush=True)
        print()
    return 0


def _writer_of(folder: Path, experiment: str | None) -> "Writer":
    """Returns the writer of a run."""
    from dl.training.result import Result  # the loop, orbax

    rebuilt = rebuild_for_use(folder, experiment)
    return Result(rebuilt.experiment, rebuilt.run.result or {}, run=rebuilt.run, mesh=make_mesh()).writer
