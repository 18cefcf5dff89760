"""A published language model that writes text, without a run."""

from pathlib import Path
from typing import Any

import numpy as np

from dl import optimizers, task
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.data.text.contract import Tokenizer
from dl.data.text.tokenizers_subword import published
from dl.errors import UserError
from dl.experiment import Experiment
from dl.generation.writer import Writer
from dl.models.t5 import T5
from dl.models.transfer import WithHead
from dl.models.weights.files import local_copy
from dl.models.weights.hugging_face import load_model
from dl.ranges import STEPS, check_count
from dl.system.json_files import read_json
from dl.task import Task

MAX_CONTEXT = 1024  # tokens, if the caller does not state more


class _Texts(ArraySplits):
    """Data without texts: they only state the tokenizer and the number of tokens that the model sees."""

    def __init__(self, name: str, tokenizer: Tokenizer, features: tuple[str, ...], context: int):
        empty = np.zeros((1, context), np.int32)
        super().__init__(name, train=ArraySource(dict.fromkeys(features, empty)))
        self.tokenizer = tokenizer


def load_writer(source: str | Path, *, context: int | None = None, revision: str | None = None) -> Writer:
    """Returns a writer with published weights in the layout of Hugging Face.

    The folder holds config.json, safetensors and tokenizer.json of GPT-2, Llama 2 and 3, Mistral, Qwen 3, T5
    or Flan-T5. For example::

        writer = load_writer("./gpt2")
        (text,) = writer.generate("Once upon a time", max_tokens=50, temperature=0.8)

    Args:
      source: a folder, or the name of a model on the Hugging Face hub.
      context: number of tokens that the model sees. `None` means that of its config.json, at most 1,024.
      revision: commit on the hub. `None` means the newest commit.

    Raises:
      UserError: the source cannot be read, the model does not write text, or the context is longer than the
        model can read.
    """
    if context is not None:
        check_count("context", context, STEPS)
    folder = local_copy(source, revision, ["config.json", "tokenizer.json"])
    model, variables = load_model(source, revision=revision)
    config = {name: value for name, value in read_json(folder / "config.json").items() if value is not None}
    longest = config.get("n_positions") or config.get("max_position_embeddings")
    if context is None:
        context = min(longest or MAX_CONTEXT, MAX_CONTEXT)
    elif longest and context > longest:
        raise UserError(f"context={context} is longer than the {longest} tokens that {source} can read")
    learned, features = _task_of(model, config, source)
    experiment = Experiment(
        data=_Texts(str(source), published(str(folder / "tokenizer.json")), features, context),
        task=learned,
        tx=optimizers.sgd(0.0),
        num_steps=1,
        batch_size=1,
    )
    return Writer(experiment, variables)


def _task_of(model: Any, config: dict[str, Any], source: str | Path) -> tuple[Task, tuple[str, ...]]:
    """Returns the task of a model and the names of its features."""
    if isinstance(model, T5):
        padding_id, end_id = config.get("pad_token_id", 0), config.get("eos_token_id", 1)
        start_id = config.get("decoder_start_token_id", padding_id)
        learned = task.sequence_to_sequence(model, start_id=start_id, end_id=end_id, padding_id=padding_id)
        return learned, ("source", "target")
    if isinstance(model, WithHead) or not hasattr(model, "empty_cache"):
        name = type(model).__name__
        raise UserError(f"{source} holds a {name}, which does not write text; give a decoder or T5")
    return task.language_model(model), ("tokens",)
