"""Class activation maps by the gradient with respect to a feature map (Grad-CAM; Selvaraju et al. 2017).

Shapes: N examples, B examples of a batch, H height, W width, D channels of the feature map.
"""

from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dl.analysis.attributions.scoring import (
    batch_size_of,
    concatenated,
    floats_of,
    in_batches,
    selected,
    targets_of,
)
from dl.errors import UserError
from dl.types import Variables


class Applied(Protocol):
    """A Linen model, or another object whose `apply` calls one."""

    @property
    def apply(self) -> Callable[..., Any]:
        """A function from variables and inputs to scores, equal to itself however often it is read."""


def grad_cam(
    model: Applied,
    variables: Variables,
    inputs: Any,
    layer: str,
    targets: Any = None,
    *,
    reads_input: bool = False,
    activation: Callable[[jax.Array], jax.Array] | None = None,
    rectified: bool = True,
    resized: bool = True,
    batch_size: int | None = None,
) -> np.ndarray:
    """Returns maps of where a feature map raises the target's score (Selvaraju et al. 2017, eq. 1 and 2).

    The feature map is read and perturbed while the model is applied. The model does not change.

    Args:
      model: a Linen model from images (B, H, W, C) to scores (B, C), or what calls one.
      variables: its variables.
      inputs: N images, floats of shape (N, H, W, C).
      layer: path of a layer, such as `block3/conv1`. Where a ReLU outside of the layer follows it, name the
        layer behind the ReLU and set `reads_input`.
      targets: index of the score to explain, one or (N,). `None` means the highest score of each example.
      reads_input: whether the feature map is the input of the layer instead of its output.
      activation: function that follows the layer in the model, such as `jax.nn.relu`, where no layer reads
        its result. It is applied to the feature map before this is weighted.
      rectified: whether negative values become zero, as in the paper.
      resized: whether the maps are resampled to the size of the images. Otherwise they have that of the
        layer.
      batch_size: number of images in memory. `None` chooses it by the size of the activations.

    Returns:
      Maps of shape (N, H, W).

    Raises:
      UserError: the model has no feature map of that name, or a target is not the index of a score.
    """
    inputs, score = floats_of(inputs), Partial(model.apply, variables)
    size = batch_size_of(score, inputs, batch_size)
    targets_N = targets_of(score, inputs, targets, size)
    example = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    maps = feature_maps(model, variables, example, reads_input)
    if layer not in maps:
        raise UserError(f"layer={layer!r} has no feature map; choose one of {', '.join(maps) or 'none'}")
    read = Partial(_Read(model.apply, layer, reads_input, activation), variables)
    parts = (_activation_maps(read, *slices) for slices, _ in in_batches(size, inputs, targets_N))
    maps_NHW = jnp.asarray(concatenated(parts)[: len(inputs)])
    maps_NHW = jnp.maximum(maps_NHW, 0) if rectified else maps_NHW
    if resized:
        maps_NHW = jax.image.resize(maps_NHW, inputs.shape[:3], "bilinear")
    return np.asarray(maps_NHW)


class _Read:
    """A function from variables, inputs and a perturbation of a feature map to scores and feature map."""

    def __init__(
        self,
        apply: Callable[..., Any],
        layer: str,
        reads_input: bool,
        activation: Callable[[jax.Array], jax.Array] | None,
    ):
        self._key = (apply, layer, reads_input, activation)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Read) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __call__(self, variables: Variables, inputs_B: Any, added: Any) -> tuple[jax.Array, jax.Array]:
        apply, layer, reads_input, activation = self._key
        found: list[jax.Array] = []

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if "/".join(context.module.path) != layer or context.method_name != "__call__" or found:
                return call(*args, **kwargs)
            if reads_input:
                found.append(args[0])
                return call(args[0] if added is None else args[0] + added, *args[1:], **kwargs)
            found.append(call(*args, **kwargs))
            return found[0] if added is None else found[0] + added

        with nn.intercept_methods(intercept):
            scores_BC = apply(variables, inputs_B)
        return scores_BC, found[0] if activation is None else activation(found[0])


@jax.jit
def _activation_maps(read: Partial, inputs_B: jax.Array, targets_B: jax.Array) -> jax.Array:
    def total(added_BHWD: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores_BC, features_BHWD = read(inputs_B, added_BHWD)
        return selected(scores_BC, targets_B).sum(), features_BHWD

    features = jax.eval_shape(lambda: read(inputs_B, None))[1]
    gradients_BHWD, features_BHWD = jax.grad(total, has_aux=True)(jnp.zeros(features.shape, features.dtype))
    weights_BD = gradients_BHWD.mean((1, 2))
    return jnp.einsum("bhwd,bd->bhw", features_BHWD, weights_BD)


def feature_maps(
    model: Applied, variables: Variables, example: Any, reads_input: bool = False
) -> dict[str, tuple[type[nn.Module], tuple[int, int]]]:
    """Returns the layers that read or return a feature map by path: their module, and height and width.

    They are in the order in which they end.

    Args:
      model: as in `grad_cam`.
      variables: its variables.
      example: an image, or its shape and dtype, with an axis of the batch.
      reads_input: whether the feature map is the input of a layer instead of its output.
    """
    found: dict[str, tuple[type[nn.Module], tuple[int, int]]] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        value = args[0] if reads_input and args else output
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and path and getattr(value, "ndim", 0) == 4:
            found[path] = type(context.module), tuple(value.shape[1:3])
        return output

    def scores(variables: Variables, inputs: Any) -> Any:
        with nn.intercept_methods(intercept):
            return model.apply(variables, inputs)

    jax.eval_shape(scores, variables, example)
    return found
