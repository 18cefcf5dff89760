"""The configuration of a quantised model, and the experiments and variables that it makes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dl.errors import UserError
from dl.experiment import Experiment
from dl.gradients import mean_and_loss
from dl.methods.quantization.layers import DYNAMIC, FLOAT, Layers, computing_integers, simulating
from dl.methods.quantization.weights import with_integers, with_unpacked_kernels
from dl.ranges import POSITIVE
from dl.task import Task
from dl.types import Aux, Batch, Key, LossFn, ModelState, Params, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """Which layers have integers, and how their inputs are rounded. `calibrate` makes it for a trained model.

    Attributes:
      layers: path of each quantised layer, such as `layers/layer0/attention/query`, and what happens to its
        inputs. A number is their fixed scale, the step between two integers. "dynamic": each row of a dense
        layer and each example of a convolution has a scale of its own, its largest magnitude over 127.
        "float": they are not rounded, and the layer computes with floats from integer weights.
      bits: bits of the weights, 8 or 4. Integers of 4 bits are stored two in a byte and computed as int8.
      stacked: layers that are scanned, and their number of leading axes.
      qat: whether the float weights are trained while the model computes with rounded ones
        (quantisation-aware training). False: the variables hold the integers and nothing is trained.
    """

    layers: Layers
    bits: int = 8
    stacked: Mapping[str, int] = dataclasses.field(default_factory=dict)
    qat: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (8, 4) or isinstance(self.bits, bool):
            raise UserError(f"bits={self.bits!r} is not a number of bits of weights; choose 8 or 4")
        if not isinstance(self.layers, Mapping) or not self.layers:
            raise UserError(
                f"layers={str(self.layers)[:80]} names no layer; let quantization.calibrate do it"
            )
        for path, inputs in self.layers.items():
            if inputs in (DYNAMIC, FLOAT):
                continue
            if (
                isinstance(inputs, bool | str)
                or not isinstance(inputs, int | float)
                or inputs not in POSITIVE
            ):
                raise UserError(
                    f"layers: the inputs of {path!r} are {inputs!r}; give a scale, {DYNAMIC!r} or {FLOAT!r}"
                )

    @property
    def finished(self) -> "Quantization":
        """The configuration of the model with integers that quantisation-aware training leads to."""
        return dataclasses.replace(self, qat=False)

    def changed(self, experiment: Experiment) -> Experiment:
        """Returns the experiment whose model is quantised.

        Evaluation and everything else that uses the trained model compute with integers. With `qat` the
        training computes with the same numbers as floats. A batch norm is not folded in training; its factor
        belongs to an output channel, whose integers it does not change.

        Without `qat` the variables hold the integers, and the experiment is a run of one step that changes
        nothing, so that it is evaluated, saved and loaded like all others.
        """
        task = _integer_task(experiment.task, self)
        if self.qat:
            return dataclasses.replace(experiment, task=task)
        return dataclasses.replace(
            experiment,
            task=task,
            tx=optax.set_to_zero(),
            grad_fn=no_gradient,
            num_steps=1,
            eval_every=None,
            eval_at_start=False,
            warm_start=None,
            frozen=(),
            reduction="fast",
            keep_best=None,
            stop_at=None,
            ema_decay=None,
            loss_scale=None,
        )

    def converted(self, variables: Variables) -> Variables:
        """Returns float variables as the variables of the changed experiment: with `qat` as they are.

        Raises:
          UserError: a quantised layer is not in the variables, or already holds integers.
        """
        return variables if self.qat else self._with_integers(variables)

    def stored(self, variables: Variables) -> Variables:
        """Returns the variables of the changed experiment with integers, as a deployable file holds them."""
        return self._with_integers(variables) if self.qat else variables

    def _with_integers(self, variables: Variables) -> Variables:
        params = with_integers(variables["params"], self.layers, self.stacked, self.bits)
        return {**variables, "params": params}


def _integer_task(task: Task, quantization: Quantization) -> Task:
    layers, bits = quantization.layers, quantization.bits

    def init(key: Key, batch: Batch) -> Variables:
        return quantization.converted(task.init(key, batch))

    def loss(params: Params, model_state: ModelState, batch: Batch, key: Key | None) -> Any:
        if quantization.qat and key is not None:
            with simulating(layers, bits):
                return task.loss(params, model_state, batch, key)
        with computing_integers(layers, bits):
            return task.loss(with_unpacked_kernels(params), model_state, batch, None)

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(variables: Variables, *rest: Any) -> Any:
            params = with_unpacked_kernels(variables.get("params", {}))
            with computing_integers(layers, bits):
                return function({**variables, "params": params}, *rest)

        return call

    return task.with_uses(within)._replace(init=init, loss=loss)


def simulated(task: Task, quantization: Quantization) -> Task:
    """Returns the task that computes with floats what the integers of its float variables stand for.

    It is what quantisation-aware training sees, without training: a reference for the integers.
    """

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with simulating(quantization.layers, quantization.bits):
                return function(*arguments)

        return call

    return task.with_uses(within)._replace(loss=within(task.loss))


def no_gradient(loss_fn: LossFn) -> Callable[..., tuple[tuple[jax.Array, Aux], Params]]:
    """A `grad_fn` for variables that are not trained, which may be integers: the gradient is 0."""
    both = mean_and_loss(loss_fn)

    def gradient(params: Params, *arguments: Any) -> tuple[tuple[jax.Array, Aux], Params]:
        value, (_, aux) = both(params, *arguments)
        return (value, aux), jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)

    return gradient
