"""A family of published language models: one table of tensors, read in both directions, and its config.json.

Each row of the table is a `Tensor`: its name in the file, the paths of the parameters that it holds, and how
they lie in it. Loading and saving use the same rows, so neither can forget a tensor that the other knows.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from dl.errors import UserError


class Layout(NamedTuple):
    """How the arrays of Linen lie in one tensor of PyTorch: a pair of functions, each other's inverse.

    Attributes:
      split: function from the tensor and the number of parameters to the arrays of Linen.
      join: function from the arrays of Linen to the tensor.
    """

    split: Callable[[np.ndarray, int], list[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]


SAME = Layout(lambda tensor, _: [tensor], lambda arrays: arrays[0])
"""One array, as it is: embeddings, biases, scales of norms, and the kernels of `Conv1D` of GPT-2."""

TRANSPOSED = Layout(lambda tensor, _: [tensor.T], lambda arrays: arrays[0].T)
"""One kernel: (outputs, inputs) in `torch.nn.Linear`, (inputs, outputs) in `flax.linen.Dense`."""

FUSED = Layout(
    lambda tensor, count: (
        np.split(tensor, count, axis=-1) if tensor.shape[-1:] and tensor.shape[-1] % count == 0 else [tensor]
    ),
    lambda arrays: np.concatenate(arrays, axis=-1),
)
"""Several arrays beside each other along the last axis, such as `c_attn` of GPT-2."""


class Tensor(NamedTuple):
    """A row of the table of a family.

    Attributes:
      name: name of the tensor in a file of the model with its head.
      paths: paths of the parameters that it holds.
      layout: how they lie in it.
    """

    name: str
    paths: tuple[str, ...]
    layout: Layout = SAME


def dense(name: str, path: str, use_bias: bool = True) -> list[Tensor]:
    """Returns the rows of a `torch.nn.Linear`."""
    kernel = Tensor(f"{name}.weight", (f"{path}/kernel",), TRANSPOSED)
    return [kernel, Tensor(f"{name}.bias", (f"{path}/bias",))] if use_bias else [kernel]


def norm(name: str, path: str, use_bias: bool = True) -> list[Tensor]:
    """Returns the rows of a norm."""
    scale = Tensor(f"{name}.weight", (f"{path}/scale",))
    return [scale, Tensor(f"{name}.bias", (f"{path}/bias",))] if use_bias else [scale]


class Config:
    """The values of a config.json. A value that the models of `dl` cannot follow is refused by its name.

    Attributes:
      source: where the file was found, for messages.
      values: the values by name.
    """

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        self.source, self.values = source, values

    def get(self, name: str, default: Any) -> Any:
        """Returns a value, or the default if the file does not have it or it is null."""
        value = self.values.get(name)
        return default if value is None else value

    def size(self, name: str) -> int:
        """Returns a whole number that the file must have."""
        value = self.values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{self.source}: config.json has {name}={value!r}; it must be a positive integer")
        return value

    def require(self, name: str, *supported: Any) -> None:
        """Raises UserError unless a value is one of those that are supported; the first is the default."""
        value = self.values.get(name, supported[0])
        if value not in supported:
            known = " or ".join(repr(one) for one in supported)
            raise UserError(
                f"{self.source}: config.json has {name}={value!r}, which dl does not compute; it must be "
                f"{known}: use another model"
            )

    def shared(self, *names: str, default: float) -> float:
        """Returns the value that several names must share, such as the dropout of all parts."""
        values = {name: self.values.get(name, default) for name in names}
        if (
            any(not isinstance(value, int | float) for value in values.values())
            or len(set(values.values())) > 1
        ):
            raise UserError(
                f"{self.source}: config.json has {', '.join(f'{name}={v!r}' for name, v in values.items())}; "
                "models of dl have one number for all: make them equal in config.json"
            )
        return float(values[names[0]])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A family of models whose weights are published in the layout of Hugging Face.

    Attributes:
      model_types: values of `model_type` in config.json that are read.
      prefix: first part of the names of all tensors except those of heads. A base model, which is saved
        without a head, does not have it.
      model_of: function from a config to the Linen module.
      config_of: function from the Linen module to the values of config.json.
      tensors: function from the Linen module to the table.
      copies: names of tensors that repeat another tensor, with the name of the other. They may be missing
        and must be equal to it.
      ignored: regular expression of the names, without the prefix, of tensors that are not read although
        they are not in the table: constants, and heads that the module does not have.
      inputs: arguments with which the module is initialised.
      spellings: ends of names in old files, with the ends that replace them.
      base_of: function from the module to the part that has the attributes `is_scanned` and `dtype`.
      with_base: function from the module and another such part to the module with this part.
      kept: regular expression of the values of config.json that do not follow from the module, so that they
        are kept from the folder that it came from.
      of_shapes: function from the module and the shapes of parameters to the module of the same family, such
        as another head, that has such parameters.
    """

    model_types: tuple[str, ...]
    prefix: str
    model_of: Callable[[Config], nn.Module]
    config_of: Callable[[Any], dict[str, Any]]
    tensors: Callable[[Any], list[Tensor]]
    copies: Callable[[Any], Mapping[str, str]] = lambda model: {}
    ignored: str = r"$^"
    inputs: tuple[Any, ...] = (np.zeros((1, 1), np.int32),)
    spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    base_of: Callable[[Any], Any] = lambda model: model
    with_base: Callable[[Any, Any], Any] = lambda model, base: base
    kept: str = r".*_token_id|id2label|label2id"
    of_shapes: Callable[[Any, Mapping[str, Any]], Any] = lambda model, shapes: model
