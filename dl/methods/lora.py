"""LoRA: low-rank adapters of the kernels of a model whose own parameters stay as they are.

A dense layer y = x W computes

    y = x W + (α / r) · x A B,    A of shape I × r, B of shape r × O,

where W is frozen and r is small (Hu et al. 2021, section 4.1). At the start B = 0, so the model computes
exactly what it did without adapters. A is drawn from U(−1/√I, 1/√I), as in the authors' code. After training,
W + (α / r) · A B is an ordinary kernel. For a convolution, x A is a convolution with r channels.

The adapters lie beside their kernels, as `…/query/lora_a` and `…/query/lora_b`. So the paths of all other
parameters stay, and so do warm starts. Only the adapters have gradients and a state in the optimizer::

    adapters = LoRA(patterns=("query", "value"), rank=8, alpha=16)
    Experiment(
        task=with_lora(task.language_model(model), adapters),
        frozen=adapters.frozen,
        warm_start=pretrained_model("openai-community/gpt2"),
        …
    )

Shapes: I inputs, O outputs, r rank. Layers that are scanned have one more leading axis.
"""

import contextlib
import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dl.errors import UserError
from dl.freezing import is_frozen
from dl.models.dropout import Dropout
from dl.models.weights.files import load_safetensors, read_metadata, save_safetensors
from dl.ranges import BELOW_ONE, POSITIVE, STEPS, check, check_count
from dl.task import Task
from dl.types import Aux, Batch, Key, Params, Variables
from dl.warm_start import ADAPTERS, without_adapters

Call = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Which kernels have adapters, and their size.

    Attributes:
      patterns: regular expressions. The kernels of `nn.Dense` and `nn.Conv` whose path matches one, such as
        `layers/layer0/attention/query/kernel`, have adapters. Section 7.1 of the paper recommends the queries
        and values of the attention.
      rank: r, the number of columns of A.
      alpha: α. The update is multiplied by α / r, so that the learning rate need not change with r.
      dropout: probability that an input of A is dropped in training.
      trained: regular expressions of parameters that are trained beside the adapters, such as a new head.
    """

    patterns: tuple[str, ...] = ("query", "value")
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    trained: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count("rank", self.rank, STEPS)
        check("alpha", self.alpha, POSITIVE)
        check("dropout", self.dropout, BELOW_ONE)
        if isinstance(self.patterns, str) or not self.patterns:
            raise UserError(f"patterns={self.patterns!r} must be a tuple of expressions, such as ('query',)")

    @property
    def scale(self) -> float:
        """The factor of the update, α / r."""
        return self.alpha / self.rank

    @property
    def frozen(self) -> tuple[str, ...]:
        """The patterns for `Experiment.frozen`: all parameters except the adapters and `trained`."""
        trained = "|".join(f"(?:{pattern})" for pattern in (r"(^|/)lora_[ab]$", *self.trained))
        return (f"^(?!.*(?:{trained}))",)


def with_lora(task: Task, adapters: LoRA) -> Task:
    """Returns the task whose model has adapters, in training, in evaluation and where it writes sequences.

    The initial variables hold the adapters. Set `Experiment.frozen=adapters.frozen`, so that only they are
    trained.

    Raises:
      UserError: a pattern matches no kernel, or a kernel of a layer that cannot have adapters, when the
        variables are initialised.
    """

    def init(key: Key, batch: Batch) -> Variables:
        with _layers() as layers:
            variables = task.init(key, batch)
        params = _with_new_adapters(jax.random.fold_in(key, 0), variables["params"], layers, adapters)
        return {**variables, "params": params}

    def loss(params: Params, *arguments: Any) -> tuple[Any, Aux]:
        with _adapted(adapters):
            return task.loss(params, *arguments)

    return task.with_uses(lambda function: _within(adapters, function))._replace(
        init=init, loss=loss, adapters=adapters
    )


def merge(params: Params, adapters: LoRA) -> Params:
    """Returns the parameters of the model without adapters: each kernel is W + (α / r) · A B.

    The products are computed in float32. The kernels keep their dtypes.

    `adapters` is what they were trained with, in a run `run.experiment.task.adapters`.

    Raises:
      UserError: the parameters hold no adapters, or adapters of another rank.
    """
    leaves = _with_adapters(params, adapters)
    merged = flatten_dict(without_adapters(params))
    for path in leaves:
        if path[-1] != "lora_a":
            continue
        a, b = (jnp.asarray(leaves[*path[:-1], name], jnp.float32) for name in ADAPTERS)
        # A window of a convolution lies between the axes of scanned layers and those of the matrices.
        b = b.reshape(*b.shape[:-2], *(1,) * (a.ndim - b.ndim), *b.shape[-2:])
        kernel = leaves[*path[:-1], "kernel"]
        update = adapters.scale * jnp.matmul(a, b, precision="highest")
        merged[*path[:-1], "kernel"] = (jnp.asarray(kernel, jnp.float32) + update).astype(kernel.dtype)
    return unflatten_dict(merged)


def save_adapters(path: str | Path, params: Params, adapters: LoRA) -> None:
    """Writes the adapters and the other trained parameters into a safetensors file.

    The configuration is in the metadata of the file.

    Raises:
      UserError: the parameters hold no adapters, or adapters of another rank.
    """
    leaves = _with_adapters(params, adapters)
    trained = {keys: leaf for keys, leaf in leaves.items() if not is_frozen("/".join(keys), adapters.frozen)}
    metadata = {name: json.dumps(value) for name, value in dataclasses.asdict(adapters).items()}
    save_safetensors(path, unflatten_dict(trained), {"kind": "lora", **metadata})


def _with_adapters(params: Params, adapters: LoRA) -> dict[tuple[str, ...], Any]:
    """Returns the leaves of parameters with adapters of the stated rank."""
    leaves: dict[tuple[str, ...], Any] = flatten_dict(params)
    ranks = {leaf.shape[-1] for keys, leaf in leaves.items() if keys[-1] == "lora_a"}
    if not ranks:
        raise UserError("the parameters hold no adapters; give those of a task that lora.with_lora made")
    if ranks != {adapters.rank}:
        raise UserError(
            f"the parameters hold adapters of rank {min(ranks)}, and the configuration has rank="
            f"{adapters.rank}; use that of the run, run.experiment.task.adapters"
        )
    return leaves


def load_adapters(path: str | Path, params: Params) -> tuple[Params, LoRA]:
    """Returns parameters of the same base model with the adapters of a file, and their configuration.

    Args:
      path: file that `save_adapters` wrote.
      params: parameters of the base model. Adapters that they hold are replaced.

    Raises:
      UserError: the file does not hold adapters, or they do not fit the parameters.
    """
    metadata = read_metadata(path)
    if metadata.pop("kind", None) != "lora":
        raise UserError(f"{path} does not hold adapters; give a file that lora.save_adapters wrote")
    fields: dict[str, Any] = {name: json.loads(value) for name, value in metadata.items()}
    adapters = LoRA(**fields | {name: tuple(v) for name, v in fields.items() if isinstance(v, list)})
    leaves = flatten_dict(without_adapters(params))
    loaded = flatten_dict(load_safetensors(path))
    for keys, array in loaded.items():
        base = (*keys[:-1], "kernel") if keys[-1] in ADAPTERS else keys
        name = "/".join(keys)
        if base not in leaves:
            raise UserError(
                f"{path} holds {name}, and the model has no {'/'.join(base)}; use the base model that the "
                "adapters were trained with"
            )
        shape = tuple(leaves[base].shape)
        if keys[-1] == "lora_a":
            fits = array.shape == (*shape[:-1], adapters.rank)
        elif keys[-1] == "lora_b":
            num_leading = array.ndim - 2
            fits = array.shape == (*shape[:num_leading], adapters.rank, shape[-1])
        else:
            fits = array.shape == shape
        if not fits:
            raise UserError(
                f"{path} holds {name} with shape {array.shape} and rank {adapters.rank}, and the model has "
                f"{'/'.join(base)} with shape {shape}; use the base model that the adapters were trained with"
            )
        if keys[-1] in ADAPTERS and any((*keys[:-1], other) not in loaded for other in ADAPTERS):
            raise UserError(
                f"{path} holds {name} without the other adapter of its kernel; save the adapters again"
            )
    return unflatten_dict(leaves | loaded), adapters


@contextlib.contextmanager
def _layers() -> Iterator[dict[str, tuple[nn.Module, int]]]:
    """Returns a context that notes the layers that may have adapters, with the axes of one layer's kernel."""
    layers: dict[str, tuple[nn.Module, int]] = {}

    def intercept(call: Call, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = call(*args, **kwargs)
        module = context.module
        if _may_have_adapters(module, context):
            kernel: Any = module.get_variable("params", "kernel")
            layers["/".join(module.path)] = module.clone(parent=None), kernel.ndim
        return outputs

    with nn.intercept_methods(intercept):
        yield layers


@contextlib.contextmanager
def _adapted(adapters: LoRA) -> Iterator[None]:
    """Returns a context in which layers with adapters beside their kernel add x A B to their outputs."""

    def intercept(call: Call, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = call(*args, **kwargs)
        module = context.module
        if not _may_have_adapters(module, context) or not module.has_variable("params", "lora_a"):
            return outputs
        a: Any = module.get_variable("params", "lora_a")
        b: Any = module.get_variable("params", "lora_b")
        inputs = args[0] if args else kwargs["inputs"]
        if adapters.dropout and module.has_rng("dropout"):
            drop = Dropout(adapters.dropout, deterministic=False)
            inputs = drop.apply({}, inputs, rngs={"dropout": module.make_rng("dropout")})
        narrow = module.clone(parent=None, name=None, features=a.shape[-1], use_bias=False)
        reduced: Any = narrow.apply({"params": {"kernel": a}}, inputs)
        return outputs + adapters.scale * jnp.matmul(reduced, b.astype(reduced.dtype))

    with nn.intercept_methods(intercept):
        yield


def _may_have_adapters(module: nn.Module, context: nn.module.InterceptorContext) -> bool:
    return type(module) in (nn.Dense, nn.Conv) and context.method_name == "__call__"


def _within(adapters: LoRA, function: Call) -> Call:
    def call(*arguments: Any) -> Any:
        with _adapted(adapters):
            return function(*arguments)

    return call


def _with_new_adapters(
    key: Key, params: Params, layers: dict[str, tuple[nn.Module, int]], adapters: LoRA
) -> Params:
    leaves = flatten_dict(params)
    kernels = ["/".join(path) for path in leaves if path[-1] == "kernel"]
    for pattern in adapters.patterns:
        if not any(re.search(pattern, name) for name in kernels):
            raise UserError(
                f"the pattern {pattern!r} matches no kernel; near paths are {_near(pattern, kernels)}"
            )
    matched = [name for name in sorted(kernels) if any(re.search(p, name) for p in adapters.patterns)]
    for number, name in enumerate(matched):
        path = tuple(name.split("/"))
        kernel, module_path = leaves[path], name.removesuffix("/kernel")
        if module_path not in layers:
            raise UserError(
                f"{name} is no kernel of nn.Dense or nn.Conv, as adapters need; change the patterns"
            )
        module, num_axes = layers[module_path]
        if getattr(module, "feature_group_count", 1) > 1:
            raise UserError(f"{name} cannot have adapters, as its channels have groups; change the patterns")
        num_leading = kernel.ndim - num_axes
        leading, fan_in = kernel.shape[:num_leading], int(np.prod(kernel.shape[num_leading:-1]))
        shape_a, shape_b = (*kernel.shape[:-1], adapters.rank), (*leading, adapters.rank, kernel.shape[-1])
        draw = jax.random.uniform(jax.random.fold_in(key, number), shape_a, jnp.float32, -1.0, 1.0)
        leaves[*path[:-1], "lora_a"] = (draw / fan_in**0.5).astype(kernel.dtype)
        leaves[*path[:-1], "lora_b"] = jnp.zeros(shape_b, kernel.dtype)
    return unflatten_dict(leaves)


def _near(pattern: str, kernels: list[str]) -> str:
    def similarity(name: str) -> float:
        return max(difflib.SequenceMatcher(None, pattern, part).ratio() for part in (name, *name.split("/")))

    return ", ".join(sorted(kernels, key=similarity, reverse=True)[:3]) or "none, the model has no kernel"
