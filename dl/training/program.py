"""The compiled program of an experiment: its steps, and the shapes of the state before it exists."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dl import freezing
from dl.activations import splitting_activations
from dl.data.pipeline import Batches
from dl.experiment import Experiment, stored_batch
from dl.flops import count_jaxpr_flops
from dl.metrics import MetricTable
from dl.precision import all_finite, has_nan
from dl.sharding import path_name, replicated, unsplit_notice
from dl.stopping import Directions
from dl.system.onednn import native_kernels
from dl.training.advance import FusedFunction, lower_fused
from dl.training.exact import exact_config
from dl.training.jitted import make_eval_step, make_train_step
from dl.training.memory import check_fits
from dl.training.population import Population
from dl.training.single import SINGLE, Single
from dl.training.state import TrainState, num_params
from dl.training.step import EvalStep, StepConfig, TrainStep
from dl.types import Batch, ModelState, Params, Variables


class CompiledSteps(NamedTuple):
    """The steps of a program, compiled.

    Attributes:
      train: returns the next state and the metrics for a state and a batch. The input state is donated.
        `None` if several steps are fused.
      fused: several steps in one call, see `advance.fuse`; `None` if each call computes one step.
      eval: returns the metrics for variables and a batch. `None` if nothing is evaluated.
      seconds: the compilation time in seconds.
    """

    train: TrainStep | None
    fused: FusedFunction | None
    eval: EvalStep | None
    seconds: float


class Program:
    """The train step and the eval step of an experiment. Each is traced and compiled once.

    Attributes:
      config: the parts of a step.
      num_steps: number of updates in the whole run.
      population: the runs that the program trains.
      abstract_state: shapes, dtypes and shardings of the state.
      shardings: the sharding of each leaf of the state.
      mesh_notice: what a person must know of the mesh; empty if there is nothing.
      facts: the number of parameters, and the FLOPs of the model per example, without decoding, resizing and
        augmentation.
      metrics: the metrics of the eval step with their directions; empty if nothing is evaluated.
      train_metrics: the metrics of the train step with their directions.
      traced: the train step for the batches of each length.
    """

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        batches: Mapping[str, Batches],
        population: Population | Single = SINGLE,
        *,
        is_allocated: bool = True,
    ):
        """Traces the steps; nothing is compiled or allocated.

        Args:
          experiment: the experiment.
          mesh: the devices.
          batches: the batches of each split.
          population: the runs that the program trains.
          is_allocated: whether the state will be on the devices, whose memory it must then fit into.
        """
        self.mesh = mesh
        self.config = StepConfig.of(experiment)
        self._is_exact = experiment.reduction == "exact"
        if self._is_exact:
            self.config = exact_config(self.config, experiment.batch_size, mesh, len(population))
        self.num_steps = experiment.num_steps
        self._seed = experiment.seed
        self._stored_batch = stored_batch(experiment)
        self.population = population.for_devices(mesh, self._trace_loss)
        abstract_state = jax.eval_shape(self._init, None)
        rules = experiment.sharding_rules
        if rules is None:
            rules = experiment.task.sharding_rules
        self.shardings = population.shardings(abstract_state, mesh, rules)
        self.mesh_notice = unsplit_notice(self.shardings.params, mesh)
        self.abstract_state = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_state,
            self.shardings,
        )
        if is_allocated:
            check_fits(self.abstract_state, mesh.local_devices)
        self._train_step = make_train_step(self.config, mesh, self.shardings, self.population)
        with jax.disable_jit(False), self._splitting():
            self.traced = [
                TracedStep(self._train_step.trace(self.abstract_state, batch), batch, num_steps)  # type: ignore[attr-defined]
                for batch, num_steps in batches["train"].shapes
            ]
        self.train_metrics: Directions = self.traced[0].traced.out_info[1].directions
        shardings = {"params": self.shardings.params, **self.shardings.saved.model_state}
        evaluated = next((b for name, b in batches.items() if name != "train"), None)
        self._eval_step = self._eval = None
        self.metrics: Directions = {}
        if evaluated is not None:
            self._eval_step = make_eval_step(self.config, mesh, shardings, self.population)
            variables = jax.eval_shape(self.eval_variables, self.abstract_state)
            with jax.disable_jit(False), self._splitting():
                self._eval = self._eval_step.trace(variables, evaluated.abstract)  # type: ignore[attr-defined]
            self.metrics = self._eval.out_info.directions
        self._select = jax.jit(population.each(_select), donate_argnums=0, out_shardings=shardings)
        self._is_finite = jax.jit(population.each(_is_finite), out_shardings=replicated(mesh))
        _, frozen = freezing.split(abstract_state.params, self.config.frozen)
        num_runs = len(population)
        forward = [] if evaluated is None else [TracedStep(self._eval, evaluated.abstract, 1)]
        self.facts = {
            "num_parameters": num_params(abstract_state.params) // num_runs,
            "num_frozen_parameters": num_params(frozen) // num_runs,
            **_flops("train", self.traced, experiment.batch_size * num_runs),
            **_flops("forward", forward, evaluated.batch_size * num_runs if evaluated is not None else 1),
        }

    def _splitting(self) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which a step is traced. Exact steps compute each part on one device."""
        if self._is_exact:
            return native_kernels()  # those of one device must be those of several
        if len(self.population) > 1:
            return contextlib.nullcontext()
        return splitting_activations(self.mesh)

    def _trace_loss(self) -> Any:
        """Returns the traced loss of one run."""
        one = jax.eval_shape(lambda: self.config.init(self._example(), self._seed))
        return jax.make_jaxpr(self.config.loss_fn)(one.params, one.model_state, self._stored_batch, one.rng)

    def _example(self) -> Batch:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self._stored_batch)

    def _init(self, warm_start: Variables | None) -> TrainState:
        return self.population.init_state(self.config, self._example(), self._seed, warm_start)

    def init(self, warm_start: Variables | None = None) -> TrainState:
        """Returns the state before the first step, on its devices.

        Args:
          warm_start: host arrays that replace the initial variables of the same path.
        """
        whole = None if warm_start is None else jax.tree.map(lambda _: replicated(self.mesh), warm_start)
        # It runs once: most of what LLVM does for speed takes longer than it saves. The bits are the same.
        is_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return jax.jit(
            self._init,
            in_shardings=(whole,),
            out_shardings=self.shardings,
            compiler_options={"xla_backend_optimization_level": 1} if is_cpu else None,
        )(warm_start)

    def compile(self, batches: Batches | None = None) -> CompiledSteps:
        """Compiles each step. With JAX_DISABLE_JIT the steps are plain functions.

        Args:
          batches: the batches of the training split, if several steps may be fused into one call.
        """
        started = time.monotonic()
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return CompiledSteps(self._train_step, None, self._eval_step, 0.0)
        fused = None
        if batches is not None and not self._is_exact:  # several devices take one step in each call
            fused = lower_fused(self.traced[0].traced, self.abstract_state, batches, self.mesh)
        of_train = [step.traced.lower() for step in self.traced] if fused is None else [fused]
        of_eval = [] if self._eval is None else [self._eval.lower()]
        with ThreadPoolExecutor(2) as pool:  # XLA compiles a program with one thread at times
            compiled = list(pool.map(lambda lowered: lowered.compile(), [*of_train, *of_eval]))
        eval_step = compiled.pop() if of_eval else None
        seconds = time.monotonic() - started
        if fused is not None:
            return CompiledSteps(None, compiled[0], eval_step, seconds)
        return CompiledSteps(_by_shape(self.traced, compiled), None, eval_step, seconds)

    def eval_variables(self, state: TrainState) -> Variables:
        """Returns the variables of a state that are evaluated."""
        return self.population.each(lambda state: state.eval_variables)(state)

    def trouble_with(self, state: TrainState) -> str:
        """Returns text about the parameters or statistics that are not finite; empty if a run has none."""
        if np.asarray(self._is_finite(state.params, state.model_state)).any():
            return ""
        return f"{next(iter(_nonfinite(state)), 'a parameter')} is not finite"

    def keep_best(self, state: TrainState, is_taken: np.ndarray) -> TrainState:
        """Returns the state with its current variables as the best ones, in the runs where `is_taken`."""
        best = self._select(state.best, self.eval_variables(state), is_taken)
        return state.replace(best=best)  # type: ignore[attr-defined]


class TracedStep(NamedTuple):
    """A step that was traced for batches of one shape.

    Attributes:
      traced: the traced step.
      batch: shapes and dtypes of its batches.
      num_steps: number of such steps in an epoch.
    """

    traced: Any
    batch: Mapping[str, jax.ShapeDtypeStruct]
    num_steps: int


def _by_shape(steps: Sequence[TracedStep], compiled: Sequence[TrainStep]) -> TrainStep:
    """Returns a step for batches of several lengths."""
    if len(compiled) == 1:
        return compiled[0]
    of = {_shapes(step.batch): compiled_step for step, compiled_step in zip(steps, compiled, strict=True)}

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, MetricTable]:
        return of[_shapes(batch)](state, batch)

    return train_step


def _shapes(batch: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(batch[name].shape for name in sorted(batch))


def _flops(name: str, steps: Sequence[TracedStep], batch_size: int) -> dict[str, int | None]:
    """Returns the FLOPs per example in both conventions of `dl.flops`; `None` if nothing was traced."""
    num_examples = batch_size * sum(step.num_steps for step in steps)
    return {
        f"{name}_flops_per_example{convention}": sum(
            step.num_steps * count_jaxpr_flops(step.traced.jaxpr, padding=padding) for step in steps
        )
        // num_examples
        if steps
        else None
        for convention, padding in (("", True), ("_without_padding", False))
    }


def _is_finite(params: Params, model_state: ModelState) -> jax.Array:
    # Statistics may start at infinity, as a running minimum does.
    return all_finite(_numbers(params)) & ~has_nan(_numbers(model_state))


def _numbers(tree: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _nonfinite(state: TrainState) -> list[str]:
    """Returns the paths of the parameters and statistics of a state that hold a value that is not finite."""
    tree = {"params": state.params, **state.model_state}
    return [
        path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all()
    ]


def _select(old: Variables, new: Variables, is_new: jax.Array) -> Variables:
    return jax.tree.map(lambda old, new: jnp.where(is_new, new, old), old, new)
