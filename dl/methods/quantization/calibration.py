"""Chooses the quantised layers of a trained model, and the scales of their inputs on training examples."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from dl.errors import UserError
from dl.experiment import Experiment
from dl.methods.quantization.configuration import Quantization
from dl.methods.quantization.integers import INPUT_BITS, largest
from dl.methods.quantization.layers import DYNAMIC, FLOAT, can_be_quantized, name_of, path_of
from dl.ranges import STEPS, Range, check, check_count
from dl.types import Batch, Variables

_SOWN = "quantization_inputs"
_BINS = 2048  # of a histogram of magnitudes
_CANDIDATES = 100  # largest magnitudes that are tried for the smallest error
_MIN_USES = 32  # products of one input from which rounding it pays, see `benchmarks.quantized_products`


class Layer(NamedTuple):
    """A layer of the model: whether it is an embedding, and whether integers make its product faster."""

    is_embedding: bool
    pays: bool
    ndim: int


def calibrate(
    experiment: Experiment,
    variables: Variables,
    *,
    bits: int = 8,
    activations: Literal["static", "dynamic", "none"] = "static",
    method: Literal["max", "percentile", "mse"] = "mse",
    percentile: float = 99.99,
    float_layers: Sequence[str] | None = None,
    num_examples: int = 512,
    batch_size: int = 128,
    qat: bool = False,
) -> Quantization:
    """Returns the configuration of the quantised model of an experiment.

    All layers of the types `nn.Dense`, `nn.DenseGeneral`, `nn.Conv` and `nn.Embed` have integer weights,
    except `float_layers`. Layers whose inputs are used by few products, and convolutions with groups, compute
    with floats, because rounding their inputs takes longer than it saves.

    Args:
      experiment: the experiment. Examples are drawn from its training split only.
      variables: the trained float variables.
      bits: bits of the weights, 8 or 4.
      activations: how the inputs of layers are rounded. static: with a scale for each layer, from examples.
        dynamic: with a scale for each row or example. none: not at all.
      method: how a static scale follows from the magnitudes of the inputs: their largest one, a percentile,
        or the limit with the smallest squared error.
      percentile: percentage of the magnitudes that are not clipped, for `method="percentile"`.
      float_layers: regular expressions. Layers whose path matches one stay as they are. `None` means the
        first layer that computes, unless the model begins with an embedding.
      num_examples: number of training examples, at equal distances in the training split.
      batch_size: number of examples that are computed at once.
      qat: whether the configuration is for quantisation-aware training.

    Raises:
      UserError: the model has no such layer, a pattern matches none, or a value is out of range.
    """
    check_count("num_examples", num_examples, STEPS)
    check_count("batch_size", batch_size, STEPS)
    check("percentile", percentile, Range(0, 100, above_low=True))
    for name, value, known in (
        ("activations", activations, ("static", "dynamic", "none")),
        ("method", method, ("max", "percentile", "mse")),
    ):
        if value not in known:
            raise UserError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")
    if experiment.task.intermediates is None:
        raise UserError("the layers of this model are not known; quantise the task of a Linen module")
    batches = _batches(experiment, num_examples, batch_size)
    layers = _layers_of(experiment, variables, batches[0])
    chosen = _chosen(layers, float_layers)
    leaves = flatten_dict(dict(variables["params"]), sep="/")
    stacked = {}
    for path in chosen:
        weights = f"{path}/{'embedding' if layers[path].is_embedding else 'kernel'}".lstrip("/")
        if extra := np.ndim(leaves[weights]) - layers[path].ndim:
            stacked[path] = extra
    rule = {"static": FLOAT, "dynamic": DYNAMIC, "none": FLOAT}[activations]
    inputs: dict[str, float | str] = {path: rule if layers[path].pays else FLOAT for path in chosen}
    if activations == "static":
        inputs |= _scales(
            experiment, variables, batches, [path for path in chosen if layers[path].pays], method, percentile
        )
    return Quantization(layers=inputs, bits=bits, stacked=stacked, qat=qat)


def _batches(experiment: Experiment, num_examples: int, batch_size: int) -> list[Batch]:
    """Returns batches of equal size of training examples, as the model reads them."""
    source = experiment.data.train
    count = min(num_examples, len(source))
    size = min(batch_size, count)
    rows = np.linspace(0, len(source) - 1, count // size * size).round().astype(np.int64)
    made = []
    for part in rows.reshape(-1, size):
        batch = {name: jnp.asarray(array) for name, array in source[part].items()}
        batch |= {"index": jnp.asarray(part, jnp.int32), "mask": jnp.ones(size, bool)}
        made.append(batch if experiment.preprocess is None else experiment.preprocess(batch))
    return made


def _layers_of(experiment: Experiment, variables: Variables, batch: Batch) -> dict[str, Layer]:
    """Returns the layers of a model that can be quantised, in the order in which they are called."""
    found: dict[str, Layer] = {}

    def note(module: Any, method: str, _: Any) -> None:
        weights = module.get_variable("params", name_of(module))
        is_embedding = isinstance(module, nn.Embed)
        uses = weights.shape[0] if is_embedding else weights.size // weights.shape[-2]
        if isinstance(module, nn.DenseGeneral):
            uses = int(np.prod(module.features))
        pays = uses >= _MIN_USES and getattr(module, "feature_group_count", 1) == 1
        found.setdefault(path_of(module), Layer(is_embedding, pays, weights.ndim))

    def trace(variables: Variables, batch: Batch) -> Any:  # a new function, which JAX has not traced before
        assert experiment.task.intermediates is not None
        return experiment.task.intermediates(variables, batch)

    with _watching(note):
        jax.eval_shape(trace, variables, batch)
    if not found:
        raise UserError(
            "the model has no layer of nn.Dense, nn.DenseGeneral, nn.Conv or nn.Embed, whose weights could "
            "be integers"
        )
    return found


def _chosen(layers: Mapping[str, Layer], float_layers: Sequence[str] | None) -> list[str]:
    """Returns the layers that do not stay as they are."""
    if float_layers is None:
        first = next(iter(layers))
        chosen = [path for path in layers if path != first or layers[path].is_embedding]
    else:
        if isinstance(float_layers, str):
            raise UserError(
                f"float_layers={float_layers!r} must be a tuple of expressions, such as ('head',)"
            )
        for pattern in float_layers:
            if not any(re.search(pattern, path) for path in layers):
                raise UserError(
                    f"float_layers: {pattern!r} matches no layer; they are {', '.join(layers)[:300]}"
                )
        chosen = [path for path in layers if not any(re.search(p, path) for p in float_layers)]
    if not chosen:
        raise UserError("no layer is left to quantise; name fewer float_layers, such as ()")
    return chosen


def _scales(
    experiment: Experiment,
    variables: Variables,
    batches: Sequence[Batch],
    paths: Sequence[str],
    method: str,
    percentile: float,
) -> dict[str, float]:
    """Returns the scale of the inputs of each of the layers that get floating-point inputs."""
    bounds = {
        path: float(np.max(parts)) for path, parts in _observed(experiment, variables, batches, {}).items()
    }
    bounds = {path: max(bounds[path], 1e-12) for path in paths if path in bounds}
    if method == "max" or not bounds:
        return {path: bound / largest(INPUT_BITS) for path, bound in bounds.items()}
    counts = _observed(experiment, variables, batches, bounds)
    scales = {}
    for path, bound in bounds.items():
        counts_K = counts[path].astype(np.float64).sum(0)
        limit = of_percentile(counts_K, percentile) if method == "percentile" else of_least_error(counts_K)
        scales[path] = float(bound * limit / largest(INPUT_BITS))
    return scales


def of_percentile(counts_K: np.ndarray, percentile: float) -> float:
    """Returns the percentile of magnitudes in [0, 1] from their histogram with K equal bins."""
    share_K = np.cumsum(counts_K) / counts_K.sum()
    return float(np.searchsorted(share_K, percentile / 100) + 1) / len(counts_K)


def of_least_error(counts_K: np.ndarray) -> float:
    """Returns the limit in (0, 1] whose integers have the least mean squared error, from a histogram."""
    values_K = (np.arange(len(counts_K)) + 0.5) / len(counts_K)
    limits = np.linspace(0, 1, _CANDIDATES + 1)[1:]
    errors = []
    for limit in limits:
        scale = limit / largest(INPUT_BITS)
        rounded_K = np.clip(np.round(values_K / scale), 0, largest(INPUT_BITS)) * scale
        errors.append(np.sum(counts_K * (values_K - rounded_K) ** 2))
    return float(limits[np.argmin(errors)])


def _observed(
    experiment: Experiment, variables: Variables, batches: Sequence[Batch], bounds: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Returns what the layers saw: largest magnitudes or, with `bounds`, histograms of magnitudes.

    Each layer has one row for each call: for each batch, for each scanned layer, and for each use of a layer
    that is used several times.
    """

    def sow(module: Any, method: str, inputs: jax.Array) -> None:
        if not jnp.issubdtype(inputs.dtype, jnp.floating) or (bounds and path_of(module) not in bounds):
            return
        magnitudes = jnp.abs(inputs.astype(jnp.float32)).ravel()
        if bounds:
            seen = jnp.histogram(magnitudes, _BINS, (0.0, bounds[path_of(module)]))[0]
        else:
            seen = magnitudes.max()
        module.sow("intermediates", _SOWN, seen)

    def observe(variables: Variables, batch: Batch) -> dict[str, list[jax.Array]]:
        assert experiment.task.intermediates is not None
        with _watching(sow):
            sown = flatten_dict(dict(experiment.task.intermediates(variables, batch)))
        return {"/".join(path[:-1]): list(calls) for path, calls in sown.items() if path[-1] == _SOWN}

    observe = jax.jit(observe)
    seen: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for path, calls in observe(variables, batch).items():
            shape = (-1, _BINS) if bounds else (-1,)
            seen.setdefault(path, []).extend(np.asarray(call).reshape(shape) for call in calls)
    return {path: np.concatenate(parts) for path, parts in seen.items()}


@contextlib.contextmanager
def _watching(note: Any) -> Iterator[None]:
    """Returns a context in which `note(module, method, inputs)` is called before each layer computes."""

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, method = context.module, context.method_name
        if method in ("__call__", "attend") and can_be_quantized(module):
            note(module, method, jnp.asarray((*args, *kwargs.values())[0]))
        return call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield
