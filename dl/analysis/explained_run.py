"""A trained classifier as explanations see it: its input, and its scores as functions of that input.

Shapes: B examples or changed copies, C classes, H height, W width, T tokens, D values of an embedding,
M columns of a row.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dl.analysis.explanation import Form
from dl.data.images.files import read_pixels
from dl.data.recorded import itself
from dl.data.text.features import features_of, reads_text
from dl.errors import UserError
from dl.runs.predictions import class_names
from dl.training.result import Result
from dl.types import Batch, Variables

Features = Mapping[str, np.ndarray]
"""The features of one example as the data store them, each with a leading axis of one."""

NUM_BACKGROUND = 50  # rows of the training split that stand for an absent column


class ExplainedRun:
    """A classifier of images, texts or rows of numbers, with functions from its input to its scores.

    Attributes:
      result: the run.
      form: what the model reads.
      input_name: name of the feature that the model reads.
      shape: shape of one input.
      class_names: name of each class.
      input_names: name of each column of a row, or of each token of the vocabulary; empty for images.
    """

    def __init__(self, result: Result):
        """Makes the functions.

        Raises:
          UserError: the run is not a classifier of images, texts or rows, or trained several seeds.
        """
        experiment = result.experiment
        task, data = experiment.task, experiment.data
        where = result.folder or "the run"
        if task.kind is not None and task.kind.name not in ("classification", "multi_label"):
            raise UserError(f"{where} is a {task.kind.words}; explain needs a classifier")
        if result.record.get("members"):
            raise UserError(f"{where} trained several seeds at the same time; give a run of one seed")
        leaf = data.train.spec.get(task.input_name)
        if task.predict is None or leaf is None:
            raise UserError(f"the task of {where} has no function predict or no input; explain needs both")
        self.result, self.input_name, self.shape = result, task.input_name, tuple(leaf.shape)
        self._dtype = np.dtype(leaf.dtype)
        self._many_labels = task.kind is not None and task.kind.name == "multi_label"
        self.form: Form = self._form_of(reads_text(data, task.input_name))
        outputs = jax.eval_shape(self.scores(self.blank()), self.model_input(self.blank()))
        num_classes = outputs.shape[-1]
        self.class_names: Sequence[str] = class_names(data, num_classes)
        self.input_names: Sequence[str] = ()
        if self.form == "text":
            self.input_names = tuple(map(str, getattr(itself(data), "token_names", ())))
        elif self.form == "row":
            names = getattr(itself(data), "feature_names", None) or [f"x{k}" for k in range(self.shape[0])]
            self.input_names = tuple(map(str, names))

    def read(self, given: Path | str | np.ndarray) -> dict[str, np.ndarray]:
        """Returns the features of a new input: a path of an image, a text, or an array as the data store it.

        Raises:
          UserError: the file is not an image, a token is not in the vocabulary, or the shape is another one.
        """
        if isinstance(given, str) and self.form == "text":
            return features_of(self.result.experiment.data, [given], self.input_name)
        if isinstance(given, str | Path):
            if self.form != "image":
                raise UserError(f"the model reads a {self.form}, not the file {given}")
            height, width, channels = self.shape
            pixels = read_pixels(Path(given), (height, width, channels))
            return {self.input_name: pixels[None]}
        array = np.asarray(given)
        if array.shape != self.shape:
            raise UserError(f"the input has the shape {array.shape}; the model reads {self.shape}")
        return {self.input_name: array.astype(self._dtype)[None]}

    def example(self, split: str, row: int) -> dict[str, np.ndarray]:
        """Returns the features of one example of a split of the data.

        Raises:
          UserError: there is no such split or row.
        """
        splits = self.result.experiment.data.evaluations
        if split not in splits:
            raise UserError(f"there is no split {split}; choose one of {', '.join(splits) or 'none'}")
        if not 0 <= row < len(splits[split]):
            raise UserError(
                f"example {row} is not in the {split} split, which has {len(splits[split]):,}; choose 0 to "
                f"{len(splits[split]) - 1}"
            )
        return dict(splits[split][np.array([row])])

    def blank(self) -> dict[str, np.ndarray]:
        """Returns the features of an example of zeros, such as a black image."""
        spec = self.result.experiment.data.train.spec
        return {name: np.zeros((1, *leaf.shape), leaf.dtype) for name, leaf in spec.items()}

    def label_of(self, features: Features) -> int | None:
        """Returns the class of an example; `None` if it is not known or there are several."""
        kind = self.result.experiment.task.kind
        value = features.get("label" if kind is None else kind.target)
        return None if value is None or np.ndim(value) != 1 else int(value[0])

    def model_input(self, features: Features) -> np.ndarray:
        """Returns what the model reads, such as pixels in [0, 1], with the axis of the batch."""
        return np.asarray(self._prepared(features)[self.input_name])

    def is_token(self, features: Features) -> np.ndarray:
        """Returns which tokens of texts are not padding, bool, shape N × T."""
        if "segment_ids" in features:
            return features["segment_ids"] > 0
        tokens_NT = features[self.input_name]
        padding = getattr(getattr(itself(self.result.experiment.data), "tokenizer", None), "padding_id", None)
        return np.ones(tokens_NT.shape, bool) if padding is None else tokens_NT != padding

    def background_token(self) -> int:
        """Returns the token that stands for an absent one: the mask, the unknown token, or padding."""
        tokenizer = getattr(itself(self.result.experiment.data), "tokenizer", None)
        ids = (getattr(tokenizer, name, None) for name in ("mask_id", "unknown_id", "padding_id"))
        return next((token for token in ids if token is not None), 0)

    def background_rows(self) -> np.ndarray:
        """Returns rows of the training split at equal distances, as the model reads them, at most 50."""
        train = self.result.experiment.data.train
        rows = np.unique(np.linspace(0, len(train) - 1, min(NUM_BACKGROUND, len(train))).round().astype(int))
        return self.model_input(train[rows])

    def mean_row(self) -> np.ndarray:
        """Returns the mean of each column over at most 1,000 rows of the training split, as stored."""
        train = self.result.experiment.data.train
        rows = np.unique(np.linspace(0, len(train) - 1, min(1000, len(train))).round().astype(int))
        return train[rows][self.input_name].mean(0, dtype=np.float64)

    def scores(self, features: Features) -> Partial:
        """Returns the logits, shape B × C, as a function of the model's input, the other features fixed."""
        others = {name: x for name, x in self._prepared(features).items() if name != self.input_name}
        return Partial(self._logits, self.result.variables, others)

    def probabilities(self, features: Features) -> Partial:
        """Returns the probabilities of the classes, shape B × C, as `scores` does."""
        return Partial(self._softmax, *self.scores(features).args)

    def embedded_scores(self, features: Features) -> tuple[Partial, np.ndarray]:
        """Returns the logits as a function of the embedded tokens of a text, and these, shape 1 × T × D.

        Raises:
          UserError: the model has no `nn.Embed` for its tokens.
        """
        prepared = self._prepared(features)
        found: list[jax.Array] = []
        with nn.intercept_methods(_embedding(None, found)):
            self._predict(self.result.variables, prepared)
        if not found:
            raise UserError(
                "the model has no embedding of its tokens (nn.Embed), which gradients need; choose "
                "--method occlusion, lime or shap"
            )
        return Partial(self._embedded, self.result.variables, prepared), np.asarray(found[0], np.float32)

    def apply(self, variables: Variables, inputs_B: jax.Array) -> jax.Array:
        """Returns the logits of images, as a Linen model does, for `attributions.grad_cam`."""
        others = {name: x for name, x in self._prepared(self.blank()).items() if name != self.input_name}
        return self._logits(variables, others, inputs_B)

    def _logits(self, variables: Variables, others: Batch, inputs_B: jax.Array) -> jax.Array:
        size = inputs_B.shape[0]
        batch = {name: jnp.broadcast_to(x, (size, *x.shape[1:])) for name, x in others.items()}
        return self._predict(variables, {**batch, self.input_name: inputs_B})

    def _softmax(self, variables: Variables, others: Batch, inputs_B: jax.Array) -> jax.Array:
        logits_BC = self._logits(variables, others, inputs_B)
        return jax.nn.sigmoid(logits_BC) if self._many_labels else jax.nn.softmax(logits_BC)

    def _embedded(self, variables: Variables, prepared: Batch, embedded_BTD: jax.Array) -> jax.Array:
        size = embedded_BTD.shape[0]
        batch = {name: jnp.broadcast_to(x, (size, *x.shape[1:])) for name, x in prepared.items()}
        with nn.intercept_methods(_embedding(embedded_BTD, [])):
            return self._predict(variables, batch)

    def _predict(self, variables: Variables, batch: Batch) -> jax.Array:
        predict = self.result.experiment.task.predict
        assert predict is not None
        logits_BC = jnp.asarray(predict(variables, batch), jnp.float32)
        if logits_BC.ndim != 2 or (logits_BC.shape[1] < 2 and not self._many_labels):
            raise UserError(
                f"the outputs of the model have the shape {logits_BC.shape}; expected (examples, classes)"
            )
        return logits_BC

    def _prepared(self, features: Features) -> Batch:
        size = len(features[self.input_name])
        missing = {name: np.repeat(x, size, 0) for name, x in self.blank().items() if name not in features}
        batch: Batch = {name: jnp.asarray(values) for name, values in {**missing, **features}.items()}
        batch |= {"index": jnp.zeros(size, jnp.int32), "mask": jnp.ones(size, bool)}
        preprocess = self.result.experiment.preprocess
        return batch if preprocess is None else preprocess(batch)

    def _form_of(self, is_text: bool) -> Form:
        if is_text:
            return "text"
        if len(self.shape) == 3 and self.shape[-1] in (1, 3):
            return "image"
        if len(self.shape) == 1:
            return "row"
        raise UserError(
            f"the model reads arrays of shape {self.shape}; explain needs images of 1 or 3 channels, texts, "
            "or rows of numbers; in Python, use dl.analysis.attributions"
        )


def _embedding(replacement: jax.Array | None, found: list[jax.Array]) -> Any:
    """Returns what intercepts the first embedding of rows of tokens, and may replace its output."""
    calls: list[bool] = []

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        is_first = isinstance(context.module, nn.Embed) and context.method_name == "__call__" and not calls
        if not is_first or output.ndim != 3:
            return output
        calls.append(True)
        found.append(output)
        return output if replacement is None else replacement.astype(output.dtype)

    return intercept
