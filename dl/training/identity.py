"""The identity of an experiment, which a run records and a resumed run compares.

It is made from the experiment itself: its settings, and digests of what it computes. Recorded options and
code may miss a change; the computation does not.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

from dl.experiment import Experiment, stored_batch
from dl.training.population import Population
from dl.training.single import SINGLE, Single
from dl.training.step import StepConfig, update_state
from dl.types import Batch

_SETTINGS = (
    *("num_steps", "batch_size", "seed", "frozen", "keep_best", "stop_at", "ema_decay"),
    *("eval_every", "eval_at_start"),
)
_LIBRARIES = ("jax", "flax", "optax")


def describe(experiment: Experiment, population: Population | Single = SINGLE) -> dict[str, Any]:
    """Returns the facts of an experiment as run.json holds them.

    Devices and addresses of objects do not change the facts. The traced computation depends on the versions
    of the libraries, on this code and on the platform; `under` names them, and only equal ones are compared.

    Returns:
      `settings`: its numbers and rules; `traced`: digests of what is computed (the initial state, a step of
      training, an evaluation) with the numbers in it.
    """
    settings = {name: _plain(getattr(experiment, name)) for name in _SETTINGS}
    settings["input_name"] = experiment.task.input_name
    settings["is_warm_started"] = experiment.warm_start is not None
    settings |= _plain(population.settings())
    batch, config = stored_batch(experiment), StepConfig.of(experiment)

    def initial_state(batch: Batch) -> Any:
        return config.init(batch, experiment.seed)

    def training_step(state: Any, batch: Batch) -> Any:
        return update_state(config, state, batch)

    def evaluation(state: Any, batch: Batch) -> Any:
        return config.loss_fn(state.params, state.model_state, batch, None)

    with jax.disable_jit(False):
        first, state = jax.make_jaxpr(initial_state, return_shape=True)(batch)
        traced = {
            "initial state": _Reader().read(first),
            "training step": _Reader().read(jax.make_jaxpr(training_step)(state, batch)),
            "evaluation": _Reader().read(jax.make_jaxpr(evaluation)(state, batch)),
        }
    return {"settings": settings, "traced": {"under": _circumstances(), **traced}}


class _Reader:
    """Digests a traced computation: its operations, their arguments and the constants in it.

    Integers are digested exactly. Floats are rounded, and a projection of each array of floats is returned
    for a comparison with a tolerance, because values that are computed from data differ in their last bits
    between machines.
    """

    def __init__(self) -> None:
        self._content = hashlib.sha256()
        self._numbers: dict[Any, int] = {}
        self._projections: list[float] = []

    def read(self, closed: core.ClosedJaxpr) -> list[Any]:
        """Returns the digest and the projections of the arrays."""
        self._closed(closed)
        return [self._content.hexdigest()[:16], self._projections]

    def _closed(self, closed: core.ClosedJaxpr) -> None:
        for constant in closed.consts:
            self._value(constant)
        self._jaxpr(closed.jaxpr)

    def _jaxpr(self, jaxpr: core.Jaxpr) -> None:
        self._variables([*jaxpr.constvars, *jaxpr.invars])
        for equation in jaxpr.eqns:
            self._text(equation.primitive.name)
            self._variables(equation.invars)
            for name, value in sorted(equation.params.items()):
                self._text(name)
                self._value(value)
            self._variables(equation.outvars)
        self._variables(jaxpr.outvars)

    def _variables(self, variables: list[Any]) -> None:
        for variable in variables:
            if isinstance(variable, core.Literal):
                self._value(variable.val)
            else:
                self._text(f"{self._number(variable)}:{variable.aval.str_short()}")

    def _number(self, variable: Any) -> int:
        return self._numbers.setdefault(variable, len(self._numbers))

    def _value(self, value: Any) -> None:
        if isinstance(value, core.ClosedJaxpr):
            self._closed(value)
        elif isinstance(value, core.Jaxpr):
            self._jaxpr(value)
        elif isinstance(value, Mapping):
            for name in sorted(value, key=str):
                self._text(str(name))
                self._value(value[name])
        elif isinstance(value, tuple | list):
            self._text(f"{len(value)}(")
            for item in value:
                self._value(item)
        elif isinstance(value, np.ndarray | np.generic | jax.Array):
            self._array(value)
        elif isinstance(value, float):
            self._text(f"{value:.6g}")
        elif value is None or isinstance(value, str | int | np.dtype | complex):
            self._text(repr(value))
        else:  # functions, meshes and others: they are covered elsewhere, or depend on the machine
            self._text(type(value).__name__)

    def _array(self, value: Any) -> None:
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        self._text(f"{array.dtype}{array.shape}")
        if not jax.dtypes.issubdtype(array.dtype, np.inexact):
            self._content.update(np.ascontiguousarray(array).tobytes())
        elif array.size == 1:
            self._text(f"{array.astype(np.complex128).item():.6g}")
        elif array.size:
            values = array.astype(np.complex128).ravel()
            weights = np.random.default_rng(0).uniform(0.5, 1.5, values.shape)
            total = complex(values @ weights) / max(float(np.abs(values) @ weights), 1e-300)
            scale = float(np.abs(values).max())
            self._projections += [round(total.real, 9), round(total.imag, 9), scale]

    def _text(self, text: str) -> None:
        self._content.update(text.encode() + b"\n")


def _circumstances() -> dict[str, str]:
    content = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        content.update(path.read_bytes())
    versions = {name: version(name) for name in _LIBRARIES}
    return {**versions, "dl": content.hexdigest()[:16], "platform": jax.default_backend()}


def _plain(value: Any) -> Any:
    """Returns a setting as a JSON value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    is_number = isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if value is None or is_number else repr(value)
