"""The result of training: the metrics, the history and the variables of a run, and its predictions."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from dl.data.checks import check_are_classes
from dl.data.text.features import features_of
from dl.errors import UserError
from dl.experiment import Experiment
from dl.generation.writer import Generated, Writer
from dl.runs.folder import RunFolder
from dl.runs.log import read_metrics
from dl.runs.memory import MemoryLog
from dl.runs.predictions import outputs_fn
from dl.training.restore import restore_variables
from dl.types import Batch, Params, Variables


class Estimate(float):
    """The value of a metric, with the bounds of its 95 % confidence interval.

    Attributes:
      low: the lower bound. `None` if there is no interval.
      high: the upper bound. `None` if there is no interval.
    """

    low: float | None
    high: float | None

    def __new__(cls, value: float, low: float | None = None, high: float | None = None) -> "Estimate":
        """Makes a number with an interval."""
        estimate = super().__new__(cls, value)
        estimate.low, estimate.high = low, high
        return estimate

    def __repr__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{float(self):.4g}{interval}"

    def __reduce__(self) -> tuple[type["Estimate"], tuple[float, float | None, float | None]]:
        return Estimate, (float(self), self.low, self.high)


class Result:
    """A run that was trained now or earlier.

    Attributes:
      experiment: the experiment that was trained.
      folder: the folder of the run. `None` if the run is in memory only.
      record: the content of result.json; empty if the run has not finished.
    """

    def __init__(
        self,
        experiment: Experiment,
        record: Mapping[str, Any],
        *,
        run: RunFolder | None,
        mesh: Mesh,
        log: MemoryLog | None = None,
        variables: Variables | None = None,
    ):
        self.experiment = experiment
        self.record = dict(record)
        self.folder: Path | None = None if run is None else run.folder
        self._run = run
        self._mesh = mesh
        self._log = log
        self._variables = variables

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {self.folder or 'a run in memory'}: {self.metrics or 'not finished'}>"
        )

    @property
    def metrics(self) -> dict[str, dict[str, Estimate]]:
        """The final metrics by split and name, with their intervals (over the seeds if there are several)."""
        intervals = self.record.get("intervals", {})
        return {
            split: {
                name: Estimate(np.nan if value is None else value, *intervals.get(split, {}).get(name, ()))
                for name, value in of_split.items()
            }
            for split, of_split in self.record.get("metrics", {}).items()
        }

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row for each logged step and each evaluation, with `kind`, `step`, `epoch` and the metrics.

        `pandas.DataFrame(result.history)` makes a table of it. See `dl.runs.log` for the kinds.
        """
        if self._log is not None:
            return [dict(line) for line in self._log.lines]
        assert self._run is not None
        return read_metrics(self._run.metrics_path) if self._run.metrics_path.exists() else []

    @property
    def samples(self) -> list[Mapping[str, Any]]:
        """The texts that the model wrote at its evaluations: `step`, `prompt` and `text` of each.

        See `Experiment.sample_prompts`.
        """
        if self._log is not None:
            return list(self._log.samples)
        assert self._run is not None
        return list(self._run.samples)

    @property
    def variables(self) -> Variables:
        """The variables that the run ended with, by collection. Several seeds have a leading axis.

        Raises:
          UserError: the checkpoint is missing or damaged.
        """
        if self._variables is None:
            assert self._run is not None
            self._variables = restore_variables(self.experiment, self._run, self._mesh)
        return self._variables

    @property
    def params(self) -> Params:
        """The trained parameters: the collection `params` of the variables."""
        return self.variables["params"]

    def predict(
        self, inputs: ArrayLike | Sequence[str] | Mapping[str, ArrayLike], batch_size: int | None = None
    ) -> Any:
        """Computes the outputs of the model for new inputs, such as the logits of a classifier.

        Args:
          inputs: the input feature of the model, with a leading axis of examples: as the data store it, or as
            floats in [0, 1]. Several features are given by name. For a model of text, a list of texts, which
            the tokenizer of the data encodes.
          batch_size: number of examples that are computed at once. `None` means the `eval_batch_size` of
            the experiment. The last batch is padded, so that the model is compiled once.

        Returns:
          NumPy arrays with one row for each example.

        Raises:
          UserError: the inputs do not have the shape of the data that the model was trained on, several seeds
            were trained, or the task has no function predict.
        """
        features = self._features(inputs)
        size = len(next(iter(features.values())))
        step = min(batch_size or self.experiment.eval_batch_size, max(size, 1))
        parts = []
        for start in range(0, max(size, 1), step):
            rows = np.minimum(np.arange(start, start + step), max(size - 1, 0))
            batch: Batch = {name: jnp.asarray(values[rows]) for name, values in features.items()}
            batch |= {"index": jnp.asarray(rows, jnp.int32), "mask": jnp.arange(start, start + step) < size}
            try:
                outputs = self._outputs(self.variables, batch)
            except (TypeError, ValueError, FlaxError) as error:
                refused = self._refused(features)
                if refused is None:
                    raise
                raise refused from error
            parts.append(jax.tree.map(lambda rows, n=size - start: np.asarray(rows)[: max(n, 0)], outputs))
        made = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
        kind, name = self.experiment.task.kind, self.experiment.task.input_name
        if kind is not None and kind.name in ("language_model", "masked_language_model"):
            tokens, num_tokens = features[name], made.shape[-1]
            if kind.padding_id is not None:
                tokens = np.where(tokens == kind.padding_id, 0, tokens)
            check_are_classes(f"{name} of row {{row}}", np.arange(size), tokens, num_tokens)
        return made

    def generate(self, prompts: str | Sequence[str], **options: Any) -> list[Generated]:
        """Generates texts after prompts; for a sequence-to-sequence model, translations of them.

        For example, `run.generate("To be", max_tokens=100, temperature=0.8)[0].text`.

        Args:
          prompts: one prompt or several.
          **options: fields of `dl.generation.sampling.Sampling`.

        Returns:
          `num_samples` texts for each prompt, in the order of the prompts; see
          `dl.generation.writer.Generated`.

        Raises:
          UserError: the model does not write text, an option is out of range, a prompt is empty, too long or
            not encodable, or several seeds were trained.
        """
        return self.writer.generate(prompts, **options)

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Yields the text after a prompt piece by piece, as it is generated; see `generate`."""
        return self.writer.stream(prompt, **options)

    @functools.cached_property
    def writer(self) -> Writer:
        """What writes text with the variables of the run, for a model that can generate."""
        self._check_one_seed("generate")
        return Writer(self.experiment, self.variables)

    def _check_one_seed(self, what: str) -> None:
        if self.record.get("members"):
            raise UserError(f"several seeds were trained at the same time; use a run of one seed to {what}")

    @functools.cached_property
    def _outputs(self) -> Any:
        self._check_one_seed("predict")
        outputs = outputs_fn(self.experiment)
        if outputs is None:
            raise UserError("the task of the experiment has no function predict; add one")
        return jax.jit(outputs)

    def _refused(self, features: Mapping[str, np.ndarray]) -> UserError | None:
        """Returns what to say of features that the model cannot take; None: they are as the data's."""
        spec = self.experiment.data.train.spec
        for name, values in features.items():
            expected = tuple(spec[name].shape) if name in spec else values.shape[1:]
            if values.shape[1:] != expected:
                return UserError(
                    f"{name} has the shape {values.shape}, which the model does not take; it was trained on "
                    f"(examples, {', '.join(map(str, expected))})"
                )
            if name in spec and spec[name].dtype.kind in "iu" and values.dtype.kind not in "iu":
                return UserError(f"{name} are given as {values.dtype}; the model reads {spec[name].dtype}")
        return None

    def _features(self, inputs: ArrayLike | Sequence[str] | Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
        """Returns the features by name; raises UserError if their shapes are not those of the data."""
        name = self.experiment.task.input_name
        if isinstance(inputs, str):
            raise UserError(f"the inputs are one text, {inputs[:40]!r}; give a list of texts")
        given: Any = inputs if isinstance(inputs, Mapping) else {name: inputs}
        if isinstance(inputs, list | tuple | np.ndarray) and len(inputs) and isinstance(inputs[0], str):
            given = features_of(self.experiment.data, list(inputs), name)
        features = {name: np.asarray(values) for name, values in given.items()}
        spec = self.experiment.data.train.spec
        for name, values in features.items():
            expected = len(spec[name].shape) + 1 if name in spec else values.ndim
            if values.ndim != expected:
                raise UserError(
                    f"{name} has the shape {values.shape}; expected (examples, "
                    f"{', '.join(map(str, spec[name].shape))}), one row for each example"
                )
        lengths = {name: len(values) if values.ndim else 0 for name, values in features.items()}
        if not lengths or len(set(lengths.values())) > 1 or not min(lengths.values()):
            raise UserError(
                f"the inputs have different numbers of examples, or no examples: {lengths}; give the same "
                "number, at "
                "least one, for each feature"
            )
        return features
