"""The compiled program of an experiment: its steps, and what is known of the state before it exists."""

import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dl.data.pipeline import Batches
from dl.experiment import Experiment
from dl.flops import count_jaxpr_flops
from dl.sharding import state_shardings
from dl.state import TrainState, init_state, num_params
from dl.step import make_eval_step, make_train_step, with_inputs


class Program:
    """The train step and the eval step of an experiment, each traced and compiled once.

    Attributes:
      abstract_state: shapes, dtypes and shardings of the state.
      shardings: of the state, leaf by leaf.
      facts: the number of parameters and the FLOPs of an example.
      train_step: compiled, after `compile`.
      eval_step: compiled, after `compile`; None where nothing is evaluated.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, batches: Mapping[str, Batches]):
        self.mesh = mesh
        self._experiment = experiment
        batch = batches["train"][0]
        self._abstract_batch = jax.eval_shape(lambda: batch)
        abstract_state = jax.eval_shape(self._init)
        self.shardings = state_shardings(abstract_state, mesh, experiment.sharding_rules)
        self.abstract_state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_state,
            self.shardings,
        )
        loss_fn = with_inputs(experiment.loss_fn, experiment.preprocess, experiment.augment)
        train_step = make_train_step(
            loss_fn,
            experiment.tx,
            mesh,
            self.shardings,
            grad_fn=experiment.grad_fn,
            ema_decay=experiment.ema_decay,
        )
        eval_step = make_eval_step(loss_fn, mesh, self.shardings)
        self._train = train_step.trace(self.abstract_state, self._abstract_batch)  # type: ignore[attr-defined]
        evaluated = next((b for name, b in batches.items() if name != "train"), None)
        self._eval = None
        if evaluated is not None:
            abstract = jax.eval_shape(lambda: evaluated[0])
            self._eval = eval_step.trace(self.abstract_state, abstract)  # type: ignore[attr-defined]
        flops = count_jaxpr_flops(self._train.jaxpr)
        self.facts = {
            "num_parameters": num_params(abstract_state.params),
            "train_flops_per_example": flops // experiment.batch_size,
            "forward_flops_per_example": (
                count_jaxpr_flops(self._eval.jaxpr) // evaluated.batch_size
                if self._eval is not None and evaluated is not None
                else None
            ),
        }

    def _init(self) -> TrainState:
        experiment = self._experiment
        return init_state(
            experiment.init,
            experiment.tx,
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self._abstract_batch),
            experiment.seed,
            keep_ema=experiment.ema_decay is not None,
            loss_scale=experiment.loss_scale,
        )

    def init(self) -> TrainState:
        """Returns the state before the first step, on its devices."""
        return jax.jit(self._init, out_shardings=self.shardings)()

    def compile(self) -> float:
        """Compiles each step once; returns the seconds it took."""
        started = time.monotonic()
        self.train_step = self._train.lower().compile()
        self.eval_step = None if self._eval is None else self._eval.lower().compile()
        return time.monotonic() - started
