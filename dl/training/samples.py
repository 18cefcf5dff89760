"""The texts that a model writes while it is trained, after the same prompts at each evaluation."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from dl.experiment import Experiment
from dl.generation.prompts import Prompts
from dl.generation.writer import Writer, decoder_for
from dl.runs.console import Console
from dl.runs.memory import MemoryRun
from dl.runs.run import Run
from dl.stopping import FINAL_SPLIT
from dl.types import Source, Variables

MAX_TOKENS = 200  # that are written after a prompt
PROMPT_TOKENS = 16  # of a prompt that is taken from the data
SHOWN = 60  # characters of a sample on the console


class Samples:
    """Writes texts at each evaluation, and keeps them in the file samples.jsonl of the run.

    A text is a function of the variables and the prompt: temperature 0.8 and the seed of the experiment.
    """

    def __init__(
        self,
        experiment: Experiment,
        prompts: Sequence[str],
        run: Run | MemoryRun,
        evaluated_step: int,
        console: Console,
    ):
        """Reads the texts that were written before a resume.

        Args:
          experiment: the experiment.
          prompts: prompts, see `prompts_of`. Without prompts nothing is written.
          run: the run that keeps the texts.
          evaluated_step: the last step that was evaluated before a resume, -1 for none. Later texts, of a
            process that was killed, are dropped.
          console: where the beginning of the first text of each evaluation is shown.
        """
        self._experiment, self._prompts, self._run, self._console = experiment, prompts, run, console
        self._writer: Writer | None = None
        self._lines = [
            line
            for line in (run.samples if prompts else ())
            if isinstance(line.get("step"), int) and line["step"] <= evaluated_step
        ]

    def write(self, step: int, variables: Variables) -> None:
        """Writes a text after each prompt, and stores all texts so far.

        Raises:
          StorageError: the file cannot be written.
        """
        if not self._prompts:
            return
        if self._writer is None:
            self._writer = Writer(self._experiment, variables)
        else:
            self._writer.load(variables)
        texts = self._writer.generate(
            self._prompts, max_tokens=MAX_TOKENS, temperature=0.8, seed=self._experiment.seed
        )
        self._lines += [{"step": step, "prompt": text.prompt, "text": text.text} for text in texts]
        self._run.keep_samples(self._lines)
        kind = self._experiment.task.kind
        is_translation = kind is not None and kind.name == "sequence_to_sequence"  # not a continuation
        text = texts[0].text if is_translation else texts[0].prompt + texts[0].text
        first = " ".join(text.split())
        self._console.line(f"  writes: {first[:SHOWN]}{'…' if len(first) > SHOWN else ''}")


def prompts_of(experiment: Experiment) -> Sequence[str]:
    """Returns the prompts of an experiment: those that it states, or the beginnings of examples.

    The examples are spread evenly over the first split that is evaluated regularly, or over train.

    Raises:
      UserError: the model does not write texts, or a prompt cannot be read.
    """
    asked = experiment.sample_prompts
    if not asked or jax.process_count() > 1:
        return ()
    prompts = Prompts(experiment)
    decoder_for(experiment)
    if not isinstance(asked, int):
        for prompt in asked:
            prompts.read(prompt)
        return asked
    splits: Mapping[str, Source] = {**experiment.data.evaluations, "train": experiment.data.train}
    source = next(splits[name] for name in splits if name != FINAL_SPLIT)
    places = np.linspace(0, len(source) - 1, asked).astype(int)
    rows = source[places][experiment.task.input_name]
    if not prompts.is_translation:
        rows = rows[:, :PROMPT_TOKENS]
    return tuple(prompts.tokenizer.decode(row) for row in rows)
