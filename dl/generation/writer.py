"""A trained language model that writes text, after prompts or as a translation of them."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dl.errors import UserError
from dl.experiment import Experiment
from dl.generation.beams import BeamSearch
from dl.generation.prompts import Prompts
from dl.generation.recompute import decoder_of
from dl.generation.sampling import Sampling
from dl.generation.slots import Programs
from dl.generation.writing import FinishReason, Writing
from dl.task import Decoder
from dl.types import Variables


@dataclasses.dataclass(frozen=True)
class Generated:
    """A generated text.

    Attributes:
      prompt: the prompt.
      text: text after the prompt, up to the end-of-text token or a stop string, which are not a part of it.
      tokens: chosen tokens, with the end-of-text token if there is one.
      log_probabilities: log-probability of each token in nats, in the distribution of the model: temperature
        1, without any restriction.
      finish_reason: why the text ended: `end` (the end-of-text token), `stop` (a stop string) or `length`
        (`max_tokens`).
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    finish_reason: FinishReason


class Writer:
    """Writes text with a model and a tokenizer.

    A request gives the same tokens and log-probabilities, bit for bit, alone and beside any other requests.
    A model with a cache (`Task.decoder`) reads each token once. Any other causal model reads the whole text
    again for each token, which is slow. Generation runs on one device.
    """

    def __init__(self, experiment: Experiment, variables: Variables):
        """Prepares the programs, which are compiled when they are first needed.

        Args:
          experiment: the experiment of the model. Its data have a `tokenizer`. The length of their sequences
            is the context: the number of tokens that the model sees.
          variables: the trained variables.

        Raises:
          UserError: the model does not write text, or the data do not have a tokenizer.
        """
        self._prompts = Prompts(experiment)
        self._programs = Programs(
            decoder_for(experiment),
            jax.device_put(variables, jax.local_devices()[0]),
            length=self._prompts.length,
            vocab_size=self._prompts.tokenizer.vocab_size,
            source_length=self._prompts.source_length,
        )
        self._beams = BeamSearch(self._programs)

    @property
    def is_translation(self) -> bool:
        """Whether a text is a translation of its prompt, and not a continuation."""
        return self._prompts.is_translation

    def load(self, variables: Variables) -> None:
        """Replaces the variables by others of the same shapes. Nothing is compiled again."""
        self._programs.variables = jax.device_put(variables, jax.local_devices()[0])

    def generate(self, prompts: str | Sequence[str], **options: Any) -> list[Generated]:
        """Generates texts after prompts; for a sequence-to-sequence model, translations of them.

        Args:
          prompts: one prompt or several. The number of tokens of each is limited by the context. A text
            that fills the context goes on from the last half of it, which is read again.
          **options: fields of `Sampling`, such as `max_tokens=100, temperature=0.8, seed=1`.

        Returns:
          `num_samples` texts for each prompt, in the order of the prompts.

        Raises:
          UserError: an option is out of range, or a prompt is empty, too long or not encodable.
        """
        sampling = Sampling.of(options)
        if not isinstance(prompts, Iterable) or isinstance(prompts, bytes):
            raise UserError(f"the prompts are {prompts!r:.80}; give a string, or a list of strings")
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        texts = [
            self._writing(prompt, sampling, sample)
            for prompt in given
            for sample in range(sampling.num_samples)
        ]
        for _ in self._write(texts):
            pass
        repeated = [prompt for prompt in given for _ in range(sampling.num_samples)]
        return [_generated(prompt, text) for prompt, text in zip(repeated, texts, strict=True)]

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Yields one text piece by piece: never a part of a character or the beginning of a stop string.

        A text of a beam search comes as one piece, because it is known only at the end.

        Args:
          prompt: the prompt.
          **options: as in `generate`. `num_samples` must be 1.

        Raises:
          UserError: as `generate`.
        """
        sampling = Sampling.of(options)
        if sampling.num_samples > 1:
            raise UserError(f"num_samples={sampling.num_samples} texts cannot be streamed; use generate")
        if not isinstance(prompt, str):
            raise UserError(f"the prompt {prompt!r:.80} is not a string; stream one prompt, or use generate")
        text, shown = self._writing(prompt, sampling, 0), 0

        def pieces() -> Iterator[str]:
            nonlocal shown
            for _ in self._write([text]):
                if piece := text.final_text[shown:]:
                    shown += len(piece)
                    yield piece

        return pieces()  # mistakes are found at the call, not at the first piece

    def _write(self, texts: Sequence[Writing]) -> Iterator[Writing]:
        if texts and texts[0].sampling.num_beams > 1:
            for text in texts:
                self._beams.write(text)
                yield text
        else:
            yield from self._programs.run(texts)

    def _writing(self, prompt: str, sampling: Sampling, sample: int) -> Writing:
        tokens, source = self._prompts.read(prompt)
        if (largest := max(source or tokens)) >= self._programs.num_outputs:
            raise UserError(
                f"the prompt has the token {largest}, but the model has {self._programs.num_outputs} tokens; "
                "use the tokenizer that the model was trained with"
            )
        prompts = self._prompts
        return Writing(
            tokens, sampling, prompts.tokenizer, end_id=prompts.end_id, sample=sample, source=source
        )


def decoder_for(experiment: Experiment) -> Decoder:
    """Returns the decoder of the model; one that reads all tokens again if the model has none."""
    task, preprocess = experiment.task, experiment.preprocess
    if task.decoder is not None and preprocess is None:
        return task.decoder
    predict, kind = task.predict, task.kind
    if predict is None or kind is None or kind.name == "sequence_to_sequence":
        raise UserError(
            "the model cannot generate: a sequence-to-sequence model needs the methods empty_cache and "
            "fill_memory, and any other model a function predict"
        )

    def outputs(variables: Variables, tokens_RS: jax.Array) -> jax.Array:
        num_rows = len(tokens_RS)
        batch = {
            task.input_name: tokens_RS,
            "index": jnp.zeros(num_rows, jnp.int32),
            "mask": jnp.ones(num_rows, bool),
        }
        return predict(variables, batch if preprocess is None else preprocess(batch))

    return decoder_of(outputs, kind.padding_id)


def _generated(prompt: str, text: Writing) -> Generated:
    assert text.finish_reason is not None
    return Generated(prompt, text.text, tuple(text.tokens), tuple(text.log_probabilities), text.finish_reason)
