"""What a model reads of a prompt, and whether it can write at all. No variables are needed for it."""

from dl.data.text.contract import Tokenizer
from dl.errors import UserError
from dl.experiment import Experiment

_WRITERS = frozenset({"language_model", "sequence_to_sequence"})


class Prompts:
    """Turns the prompts of a model into tokens.

    Attributes:
      tokenizer: tokenizer of the data.
      is_translation: whether a text is a translation of its prompt, and not a continuation.
      start_id: token that a text begins with; `None` if there is none.
      end_id: token that ends a text; `None` if there is none.
      length: largest number of tokens of a row that is written.
      source_length: largest number of tokens that an encoder reads; `None` for a model without one.
    """

    def __init__(self, experiment: Experiment):
        """Reads the spec of the data, and no example.

        Raises:
          UserError: the model does not write text, or the data do not have a tokenizer or its features.
        """
        task, kind = experiment.task, experiment.task.kind
        if kind is None or kind.name not in _WRITERS:
            what = "the kind of the task is not stated" if kind is None else f"the task is {kind.words}"
            raise UserError(
                f"{what}; only a language model or a sequence-to-sequence model can generate text"
            )
        tokenizer: Tokenizer | None = getattr(experiment.data, "tokenizer", None)
        if tokenizer is None:
            raise UserError(
                f"the data {experiment.data.identity.name} do not have a tokenizer, without which there are "
                "no prompts; use dl.data.language_modeling, or give the data an attribute tokenizer"
            )
        self.tokenizer = tokenizer
        self.is_translation = kind.name == "sequence_to_sequence"
        self.start_id, self.end_id = kind.start_id, kind.end_id
        if not self.is_translation:
            self.start_id = tokenizer.end_id if tokenizer.start_id is None else tokenizer.start_id
            self.end_id = tokenizer.end_id
        spec = experiment.data.train.spec
        target_name = kind.target if self.is_translation else task.input_name
        if target_name not in spec or (self.is_translation and task.input_name not in spec):
            raise UserError(
                f"the data have no features {task.input_name} and {target_name}; the model cannot generate "
                "without them"
            )
        self.length: int = spec[target_name].shape[0]
        self.source_length = spec[task.input_name].shape[0] if self.is_translation else None

    def read(self, prompt: str) -> tuple[list[int], list[int] | None]:
        """Returns the first tokens of the text, and those that an encoder reads.

        Raises:
          UserError: the prompt is not a string, is empty, is too long or has unknown characters.
        """
        if not isinstance(prompt, str):
            raise UserError(f"the prompt {prompt!r:.80} is not a string; give a string, or a list of them")
        tokens, source = self.tokenizer.encode(prompt), None
        if self.is_translation:
            assert self.start_id is not None
            assert self.end_id is not None
            source, tokens = [*tokens, self.end_id], [self.start_id]
        elif not tokens:
            if self.start_id is None:
                raise UserError(
                    "the prompt is empty, and the tokenizer has neither a start token nor an end token to "
                    "begin with; give a prompt"
                )
            tokens = [self.start_id]
        limit = self.length if self.source_length is None else self.source_length
        if len(source or tokens) > limit:
            raise UserError(
                f"the prompt has {len(source or tokens)} tokens, but the model was trained on sequences of "
                f"{limit}; shorten the prompt"
            )
        return tokens, source
