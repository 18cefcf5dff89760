"""Layer-wise relevance propagation (LRP; Bach et al. 2015).

A layer passes the relevance R_k of its outputs z_k = Σ_j a_j w_jk + b_k to its inputs a_j (Montavon et al.
2019, eq. 10.2 and table 10.1):

    R_j = Σ_k  a_j ρ(w_jk) / (ε sign(z_k) + Σ_j a_j ρ(w_jk) + ρ(b_k))  R_k,      ρ(w) = w + γ max(w, 0)

With ε = γ = 0 this is LRP-0. What a bias receives is not passed on.

What is passed backwards here is the quotient R / value of each value. Every sum of values then passes on its
quotient unchanged, as it passes on a gradient. LRP is therefore input × gradient of a function whose layers
and ReLUs are differentiated by the rule above (Ancona et al. 2018, section 3).

Supported: `Dense` and `Conv`, with a batch norm behind them folded into their weights; ReLU and ReLU6; max,
  mean
and sum pooling; residual sums, which share the relevance in proportion to the summands; changes of shape. A
depthwise convolution that is written as a sum of shifted products follows LRP-0.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dl.analysis.attributions.gradients import gradient_times_input
from dl.analysis.attributions.rewriting import Operand, evaluate, is_call, is_relu, literal, rewritten
from dl.analysis.attributions.scoring import Score, partial_of
from dl.errors import UserError
from dl.ranges import NON_NEGATIVE, check

# The two maxima pass all relevance to the largest input.
_LINEAR = frozenset(
    {
        *(
            "reshape",
            "transpose",
            "squeeze",
            "expand_dims",
            "broadcast_in_dim",
            "concatenate",
            "slice",
            "pad",
        ),
        *(
            "dynamic_slice",
            "rev",
            "convert_element_type",
            "copy",
            "optimization_barrier",
            "sharding_constraint",
        ),
        *(
            "neg",
            "add",
            "add_any",
            "sub",
            "reduce_sum",
            "reduce_window_sum",
            "reduce_max",
            "reduce_window_max",
        ),
    }
)


class _Layer(NamedTuple):
    """The outputs of a layer, whose weights are not yet final because a batch norm may follow.

    Attributes:
      apply: returns the outputs without the bias, from inputs and weights.
      inputs: the inputs.
      weights: the weights.
      bias: the bias, broadcast to the outputs.
      axes: for each axis of the outputs, the axis of the weights that it is. `None` for other axes.
    """

    apply: Callable[[Any, Any], Any]
    inputs: Any
    weights: Any
    bias: Any
    axes: tuple[int | None, ...]

    def scaled(self, factor: Any) -> "_Layer | None":
        """Returns the layer with its outputs multiplied. `None` if that is no change of the weights."""
        if not np.ndim(factor):
            return self._replace(weights=self.weights * factor, bias=self.bias * factor)
        shape = [1] * self.weights.ndim
        for size, axis in zip(np.shape(factor), self.axes, strict=True):
            if size > 1 and axis is None:
                return None
            if axis is not None:
                shape[axis] = size
        # The axes of outputs that are weights have the same order in both.
        return self._replace(weights=self.weights * jnp.reshape(factor, shape), bias=self.bias * factor)


def relevance(
    score: Score,
    inputs: Any,
    targets: Any = None,
    *,
    epsilon: float = 1e-6,
    gamma: float = 0.0,
    batch_size: int | None = None,
) -> np.ndarray:
    """Returns the relevance of each input for the target's score, by LRP-ε, LRP-γ or both.

    Without biases and with a small ε, the relevance of an example sums to its score.

    Args:
      score: the score, from inputs (B, …) to logits (B, C), made of the layers that the top of this file
        lists.
      inputs: N examples, floats of shape (N, …).
      targets: index of the score to explain, one or (N,). `None` means the highest score of each example.
      epsilon: number that is added to the size of each layer's outputs. It absorbs weak relevance.
      gamma: how much positive weights are favoured. It is meant for layers whose inputs are not negative.
      batch_size: number of examples in memory. `None` chooses it by the size of the activations.

    Returns:
      Relevance of the shape of the inputs.

    Raises:
      UserError: an argument is out of range, or the score has an operation that is not supported.
    """
    check("epsilon", epsilon, NON_NEGATIVE)
    check("gamma", gamma, NON_NEGATIVE)
    rules = Partial(_relevance_score, partial_of(score), np.float32(epsilon), np.float32(gamma))
    return gradient_times_input(rules, inputs, targets, batch_size=batch_size)


def _relevance_score(score: Partial, epsilon: jax.Array, gamma: jax.Array, inputs_B: jax.Array) -> jax.Array:
    def finished(operand: Operand) -> Operand:
        if operand.note is None:
            return operand
        layer: _Layer = operand.note
        bias = jnp.broadcast_to(layer.bias, operand.value.shape)
        value = _propagated(layer.apply, layer.inputs, layer.weights, bias, epsilon, gamma)
        return Operand(value, True)

    def rule(equation: Any, *operands: Operand) -> Sequence[Any] | None:
        if is_call(equation):
            return None
        name = equation.primitive.name
        dependent = [operand.depends for operand in operands]
        if name in ("dot_general", "conv_general_dilated") and dependent == [True, False]:
            return [_layer(equation, finished(operands[0]), operands[1])]
        if (folded := _folded(equation, operands)) is not None:
            return [folded]
        operands = tuple(map(finished, operands))
        if (name == "mul" and sum(dependent) == 1) or (name == "div" and dependent == [True, False]):
            return evaluate(equation, operands)
        if is_relu(equation) or (name == "min" and (literal(equation.invars[1]) or 0) > 0):
            [output] = evaluate(equation, operands)
            return [_passed(operands[0].value, output)]
        if name in _LINEAR:
            return evaluate(equation, operands)
        raise UserError(
            f"layer-wise relevance propagation has no rule for the operation {name}; it needs a network of "
            "dense layers, convolutions, batch norms, ReLUs, pooling and sums, and logits as scores"
        )

    return finished(rewritten(score, rule)(inputs_B)).value


def _layer(equation: Any, inputs: Operand, weights: Operand) -> Operand:
    """Returns the outputs of a matrix product or convolution of inputs and weights."""

    def apply(inputs: Any, weights: Any) -> Any:
        return evaluate(equation, [Operand(inputs, True), Operand(weights, False)])[0]

    value = apply(inputs.value, weights.value)
    axes: list[int | None] = [None] * value.ndim
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        (_, contracted), (_, batch) = numbers
        free = [axis for axis in range(weights.value.ndim) if axis not in (*contracted, *batch)]
        axes[value.ndim - len(free) :] = free
    else:
        axes[numbers.out_spec[1]] = numbers.rhs_spec[0]
    note = _Layer(apply, inputs.value, weights.value, jnp.zeros((), value.dtype), tuple(axes))
    return Operand(value, True, note)


def _folded(equation: Any, operands: Sequence[Operand]) -> Operand | None:
    """Returns the outputs of a layer after a product, quotient or sum with a constant. Otherwise `None`."""
    name = equation.primitive.name
    if name not in ("mul", "div", "add", "sub") or len(operands) != 2:
        return None
    layers = [operand for operand in operands if isinstance(operand.note, _Layer)]
    constants = [operand for operand in operands if not operand.depends]
    if len(layers) != 1 or len(constants) != 1 or (name in ("div", "sub") and not operands[0].depends):
        return None
    [value], constant, layer = evaluate(equation, operands), constants[0].value, layers[0].note
    if name in ("add", "sub"):
        note = layer._replace(bias=layer.bias + (constant if name == "add" else -constant))
    else:
        note = layer.scaled(constant if name == "mul" else 1 / constant)
    return None if note is None else Operand(value, True, note)


def _stable(outputs: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Returns outputs moved away from zero. A zero becomes one: it has no relevance to pass on."""
    moved = outputs + jnp.where(outputs < 0, -1, 1) * epsilon.astype(outputs.dtype)
    return jnp.where(moved == 0, 1, moved)


@jax.custom_vjp
def _passed(before: jax.Array, after: jax.Array) -> jax.Array:
    """Returns `after`, whose relevance becomes that of `before`."""
    return after


def _passed_forward(before: jax.Array, after: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return after, (before, after)


def _passed_backward(kept: tuple[jax.Array, jax.Array], quotient: jax.Array) -> tuple[jax.Array, jax.Array]:
    before, after = kept
    ratio = jnp.where(before == 0, 0, after / jnp.where(before == 0, 1, before))
    return quotient * ratio, jnp.zeros_like(after)


_passed.defvjp(_passed_forward, _passed_backward)


def _propagated(
    apply: Callable[[Any, Any], Any],
    inputs: jax.Array,
    weights: jax.Array,
    bias: jax.Array,
    epsilon: jax.Array,
    gamma: jax.Array,
) -> jax.Array:
    """Returns the outputs of a layer, whose relevance is passed on by the rule at the top of this file."""

    @jax.custom_vjp
    def outputs_of(inputs: jax.Array) -> jax.Array:
        return apply(inputs, weights) + bias

    def forward(inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        outputs = outputs_of(inputs)
        return outputs, (inputs, outputs)

    def backward(kept: tuple[jax.Array, jax.Array], quotient: jax.Array) -> tuple[jax.Array]:
        inputs, outputs = kept

        def favoured(values: jax.Array) -> jax.Array:
            return values + gamma.astype(values.dtype) * jnp.maximum(values, 0)

        sums, pull = jax.vjp(lambda inputs: apply(inputs, favoured(weights)), inputs)
        divisor = _stable(sums + favoured(bias), epsilon)
        return pull((quotient * (outputs / divisor)).astype(sums.dtype))

    outputs_of.defvjp(forward, backward)
    return outputs_of(inputs)
