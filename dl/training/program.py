"""The compiled program of an experiment: its steps, and what is known of the state before it exists."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dl import freezing
from dl.data.pipeline import Batches
from dl.experiment import Experiment
from dl.flops import count_jaxpr_flops, has_convolution
from dl.precision import all_finite, has_nan
from dl.sharding import member_shardings, path_name, replicated, state_shardings
from dl.stopping import Directions
from dl.training.memory import check_fits
from dl.training.population import Members
from dl.training.state import TrainState, init_state, num_params
from dl.training.step import make_eval_step, make_train_step, with_inputs
from dl.types import LossFn, ModelState, Params, Variables


class Program:
    """The train step and the eval step of an experiment, each traced and compiled once.

    With several members (the same experiment from several seeds) every array of the state has a leading axis,
    and one program trains them all.

    Attributes:
      abstract_state: shapes, dtypes and shardings of the state.
      shardings: of the state, leaf by leaf.
      facts: the number of parameters and the FLOPs of an example, of the model alone: without decoding,
        resizing and augmentation.
      metrics: what the eval step measures, each with its direction; empty where nothing is evaluated.
      train_metrics: what the train step measures, likewise.
      train_step: compiled, after `compile`.
      eval_step: from variables and a batch; compiled, after `compile`; None where nothing is evaluated.
    """

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        batches: Mapping[str, Batches],
        members: Members | None = None,
    ):
        self.mesh = mesh
        self._experiment = experiment
        self._members = members
        num_members = None if members is None else len(members)
        batch = batches["train"].abstract
        self._abstract_batch = jax.tree.map(
            lambda x: x if num_members is None else jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch
        )
        abstract_state = jax.eval_shape(self._init, None)
        if num_members is None:
            self.shardings = state_shardings(abstract_state, mesh, experiment.sharding_rules)
        else:
            self.shardings = member_shardings(abstract_state, mesh, num_members)
        self.abstract_state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_state,
            self.shardings,
        )
        check_fits(self.abstract_state, mesh.local_devices)
        loss_fn = with_inputs(experiment.task.loss, experiment.preprocess, experiment.augment)
        is_unrolled = num_members is not None and self._is_better_unrolled(loss_fn)
        train_step = make_train_step(
            loss_fn,
            experiment.tx,
            mesh,
            self.shardings,
            grad_fn=experiment.grad_fn,
            ema_decay=experiment.ema_decay,
            frozen=experiment.frozen,
            members=members,
            is_unrolled=is_unrolled,
        )
        self._steps: tuple[Any, Any] = (train_step, None)
        with jax.disable_jit(False):
            self._train = train_step.trace(self.abstract_state, batch)  # type: ignore[attr-defined]
        evaluated = next((b for name, b in batches.items() if name != "train"), None)
        self._eval = None
        self.metrics: Directions = {}
        self.train_metrics: Directions = self._train.out_info[1].directions
        variables = jax.eval_shape(self.eval_variables, self.abstract_state)
        shardings = {"params": self.shardings.params, **self.shardings.model_state}
        if evaluated is not None:
            eval_step = make_eval_step(
                loss_fn, mesh, shardings, num_members=num_members, is_unrolled=is_unrolled
            )
            self._steps = (train_step, eval_step)
            with jax.disable_jit(False):
                self._eval = eval_step.trace(variables, evaluated.abstract)  # type: ignore[attr-defined]
            self.metrics = self._eval.out_info.directions
        self._select = jax.jit(_select, donate_argnums=0, out_shardings=shardings)
        self._is_finite = jax.jit(
            _is_finite if num_members is None else jax.vmap(_is_finite), out_shardings=replicated(mesh)
        )
        _, frozen = freezing.split(abstract_state.params, experiment.frozen)
        copies = num_members or 1
        self.facts = {
            "num_parameters": num_params(abstract_state.params) // copies,
            "num_frozen_parameters": num_params(frozen) // copies,
            **_flops("train", self._train.jaxpr, experiment.batch_size * copies),
            **_flops(
                "forward",
                None if self._eval is None else self._eval.jaxpr,
                evaluated.batch_size * copies if evaluated is not None else 1,
            ),
        }

    def _is_better_unrolled(self, loss_fn: LossFn) -> bool:
        """Says whether the members are computed faster apart, one after another, than all in one operation.

        Vectorized over kernels, a convolution becomes a grouped one, which XLA computes on a CPU up to 6
        times slower than the same convolutions one by one. Several devices share the members anyway.
        """
        if self.mesh.size > 1 or self.mesh.devices.flat[0].platform != "cpu":
            return False
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.abstract_state)
        traced = jax.make_jaxpr(loss_fn)(one.params, one.model_state, self._abstract_batch, one.rng)
        return has_convolution(traced)

    def _init(self, start: Variables | None) -> TrainState:
        experiment = self._experiment

        def init_one(seed: Any, tx: optax.GradientTransformation) -> TrainState:
            return init_state(
                experiment.init,
                tx,
                jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self._abstract_batch),
                seed,
                frozen=experiment.frozen,
                start=start,
                keep_ema=experiment.ema_decay is not None,
                keep_best=experiment.keep_best is not None,
                loss_scale=experiment.loss_scale,
            )

        members = self._members
        if members is None:
            return init_one(experiment.seed, experiment.tx)
        return jax.vmap(lambda seed, options: init_one(seed, members.tx(options, experiment.tx)))(
            *members.arrays
        )

    def init(self, start: Variables | None = None) -> TrainState:
        """Returns the state before the first step, on its devices.

        Args:
          start: host arrays that replace the initial variables of the same path.
        """
        in_shardings = None if start is None else jax.tree.map(lambda _: replicated(self.mesh), start)
        return jax.jit(self._init, in_shardings=(in_shardings,), out_shardings=self.shardings)(start)

    def compile(self) -> float:
        """Compiles each step once; returns the seconds it took. With JAX_DISABLE_JIT nothing is compiled."""
        started = time.monotonic()
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            self.train_step, self.eval_step = self._steps
            return 0.0
        self.train_step = self._train.lower().compile()
        self.eval_step = None if self._eval is None else self._eval.lower().compile()
        return time.monotonic() - started

    def eval_variables(self, state: TrainState) -> Variables:
        """Returns what is evaluated of a state, of each member."""
        if self._members is None:
            return state.eval_variables
        return jax.vmap(lambda state: state.eval_variables)(state)

    def is_finite(self, state: TrainState) -> jax.Array:
        """Returns whether a state, each member's, can be gone on from: shape () or (M,), on the devices."""
        return self._is_finite(state.params, state.model_state)

    def keep_best(self, state: TrainState, is_taken: np.ndarray) -> TrainState:
        """Returns the state whose best variables are the present ones, for the members that take them."""
        is_taken = is_taken if self._members else is_taken[0]
        best = self._select(state.best, self.eval_variables(state), is_taken)
        return state.replace(best=best)  # type: ignore[attr-defined]


def _flops(name: str, jaxpr: Any, num_examples: int) -> dict[str, int | None]:
    """Returns the FLOPs of an example in both conventions of `dl.flops`; None where nothing was traced."""
    return {
        f"{name}_flops_per_example{convention}": (
            None if jaxpr is None else count_jaxpr_flops(jaxpr, padding=padding) // num_examples
        )
        for convention, padding in (("", True), ("_without_padding", False))
    }


def _is_finite(params: Params, model_state: ModelState) -> jax.Array:
    # Statistics may start at infinity, as a running minimum does.
    return all_finite(_numbers(params)) & ~has_nan(_numbers(model_state))


def _numbers(tree: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def nonfinite(state: TrainState) -> list[str]:
    """Returns the paths of the parameters and statistics of a state that hold a value that is not finite."""
    tree = {"params": state.params, **state.model_state}
    return [
        path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all()
    ]


def _select(old: Variables, new: Variables, is_new: jax.Array) -> Variables:
    def select(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(is_new.reshape(is_new.shape + (1,) * (new.ndim - is_new.ndim)), new, old)

    return jax.tree.map(select, old, new)
