"""Low-rank factorisation: a kernel is replaced by the product of two smaller ones.

A dense layer y = x W, W of shape I × O, becomes y = (x A) B, A of shape I × r and B of shape r × O. Of all
matrices of rank r, the truncated singular value decomposition is nearest to W (Eckart & Young 1936): the
Frobenius norm of the error is √(Σ_{i>r} σᵢ²). With W = U Σ Vᵀ, A = U_r √Σ_r and B = √Σ_r V_rᵀ, so that both
factors have the same scale. A convolution of k × k × I to O channels becomes a convolution of k × k × I to r
channels and one of 1 × 1 to O, by the decomposition of the (k k I) × O matrix (scheme 2 of Jaderberg et al.
2014, section 2, in the form of Zhang et al. 2016, section 3.1). It saves parameters if r (I + O) < I O.

The factors are the parameters `kernel_in` and `kernel_out` in place of `kernel`. All other parameters keep
their paths. The factors are trained like any other kernels::

    factorisation = low_rank.plan(variables, energy=0.95)
    smaller = factorisation.changed(experiment)
    start = factorisation.converted(variables)

Shapes: I inputs (of a convolution k k I), O outputs, r rank.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dl.errors import UserError
from dl.experiment import Experiment, stored_batch
from dl.methods.ranks import rank_of_energy, ranks_of_budget, saves, singular_values
from dl.ranges import POSITIVE, STEPS, Range, check, check_count
from dl.task import Task
from dl.types import Aux, Batch, Key, Params, Variables

FACTORS = ("kernel_in", "kernel_out")

Call = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank:
    """The ranks of kernels.

    Attributes:
      ranks: r of each kernel that is replaced, by its path, such as `head/kernel`. Only kernels of `nn.Dense`
        and `nn.Conv` can be replaced.

    Raises:
      UserError: there are no ranks, or one is not a positive integer.
    """

    ranks: Mapping[str, int]

    def __post_init__(self) -> None:
        if not self.ranks:
            raise UserError("ranks={} factorises no kernel; give ranks, such as {'head/kernel': 8}")
        for path, rank in self.ranks.items():
            check_count(f"rank of {path}", rank, STEPS)
            if not path.endswith("kernel"):
                raise UserError(f"{path} is not a kernel; give paths such as head/kernel")

    def changed(self, experiment: Experiment) -> Experiment:
        """Returns the experiment whose model has the factors.

        Raises:
          UserError: a path is not that of a kernel of `nn.Dense` or `nn.Conv` of the model.
        """
        found = kernels_with_factors(experiment)
        for path in self.ranks:
            if path not in found:
                raise UserError(
                    f"{path} is not the kernel of an nn.Dense or an nn.Conv without groups, of one layer; "
                    f"the model has {', '.join(sorted(found)[:3]) or 'no such kernel'}"
                )
        return dataclasses.replace(experiment, task=with_factors(experiment.task, self))

    def converted(self, variables: Variables) -> Variables:
        """Returns the variables with the truncated decomposition of each kernel.

        Raises:
          UserError: a kernel does not exist, or its rank is larger than the kernel allows.
        """
        leaves = flatten_dict(dict(variables["params"]), sep="/")
        for path, rank in self.ranks.items():
            if path not in leaves:
                raise UserError(f"the model has no kernel {path}, of which the rank is given; change ranks")
            kernel = leaves.pop(path)
            for name, factor in zip(FACTORS, factorised(kernel, rank, path), strict=True):
                leaves[_beside(path, name)] = jnp.asarray(factor, kernel.dtype)
        return {**variables, "params": unflatten_dict(leaves, sep="/")}

    def stored(self, variables: Variables) -> Variables:
        """Returns the variables as they are: they are small already."""
        return variables


def plan(
    variables: Variables,
    *,
    energy: float | None = None,
    budget: float | None = None,
    experiment: Experiment | None = None,
    leave_out: Sequence[str] = (),
) -> LowRank:
    """Returns the ranks of all kernels whose factors have fewer parameters.

    Args:
      variables: the trained variables.
      energy: for each kernel the smallest rank with at least this fraction of Σ σᵢ², in (0, 1].
      budget: fraction of the parameters of the kernels that is left at most, in (0, 1]. Singular values are
        dropped from all kernels, those first that cost least for each parameter that they save, where the
        cost of a value is its share of the Σ σᵢ² of its kernel.
      experiment: the experiment of the model. With it, only kernels that factors can replace are considered,
        and none that is frozen. `None` means all dense kernels and convolutions of two axes that do not look
        depthwise.
      leave_out: regular expressions. Kernels whose path matches one are not factorised.

    Raises:
      UserError: not exactly one of energy and budget is given, it is out of range or cannot be met, or no
        kernel would have fewer parameters.
    """
    if (energy is None) == (budget is None):
        raise UserError(f"energy={energy} and budget={budget}: give one of them, such as energy=0.95")
    replaceable = None if experiment is None else kernels_with_factors(experiment)
    leave_out = (*leave_out, *(() if experiment is None else experiment.frozen))
    kernels = {
        path: np.asarray(leaf)
        for path, leaf in flatten_dict(dict(variables["params"]), sep="/").items()
        if path.split("/")[-1] == "kernel"
        and (_looks_replaceable(leaf) if replaceable is None else path in replaceable)
        and not any(re.search(pattern, path) for pattern in leave_out)
    }
    spectra = {path: singular_values(kernel) for path, kernel in kernels.items()}
    if energy is not None:
        check("energy", energy, Range(0, 1, above_low=True))
        ranks = {path: rank_of_energy(values, energy) for path, values in spectra.items()}
    else:
        check("budget", budget, POSITIVE)
        ranks = ranks_of_budget(kernels, spectra, float(budget or 0))
    saving = {path: rank for path, rank in ranks.items() if saves(kernels[path].shape, rank)}
    if not saving:
        raise UserError(
            f"no kernel has fewer parameters as two factors with {f'{energy=}' if energy else f'{budget=}'}; "
            "lower it, or factorise a model with larger kernels"
        )
    return LowRank(ranks=saving)


def kernels_with_factors(experiment: Experiment) -> list[str]:
    """Returns the paths of all kernels that factors can replace; nothing is read or allocated.

    They are those of `nn.Dense`, and of `nn.Conv` without groups, in layers that are not scanned.
    """
    batch: Any = stored_batch(experiment, 1)
    if experiment.preprocess is not None:
        batch = jax.eval_shape(experiment.preprocess, batch)
    with _kernels() as num_axes:
        # A new function, because JAX does not call one again that it has traced.
        shapes = jax.eval_shape(lambda *args: experiment.task.init(*args), jax.random.key(0), batch)
    leaves = flatten_dict(dict(shapes["params"]), sep="/")
    return [path for path, number in num_axes.items() if leaves[path].ndim == number]


def factorised(kernel: Any, rank: int, path: str = "kernel") -> tuple[np.ndarray, np.ndarray]:
    """Returns the factors of a kernel: shapes … × I × r and 1 × … × r × O, where … is the window.

    Raises:
      UserError: the rank is larger than that of any matrix of this shape.
    """
    array = np.asarray(kernel, np.float64)
    matrix_IO = array.reshape(-1, array.shape[-1])
    if rank > min(matrix_IO.shape):
        raise UserError(f"rank={rank} of {path} is too large; its largest rank is {min(matrix_IO.shape)}")
    u_IR, s_R, v_RO = np.linalg.svd(matrix_IO, full_matrices=False)
    root_R = np.sqrt(s_R[:rank])
    into = (u_IR[:, :rank] * root_R[None]).reshape(*array.shape[:-1], rank)
    out = (root_R[:, None] * v_RO[:rank]).reshape(*(1,) * (array.ndim - 2), rank, array.shape[-1])
    return into, out


def merge(params: Params) -> Params:
    """Returns the parameters of the model without factors: each kernel is the product of its factors."""
    leaves = flatten_dict(dict(params), sep="/")
    merged = {path: leaf for path, leaf in leaves.items() if path.split("/")[-1] not in FACTORS}
    for path, into in leaves.items():
        if path.split("/")[-1] == FACTORS[0]:
            out = leaves[_beside(path, FACTORS[1])]
            matrix_RO = jnp.asarray(out, jnp.float32).reshape(out.shape[-2:])
            product = jnp.matmul(jnp.asarray(into, jnp.float32), matrix_RO, precision="highest")
            merged[_beside(path, "kernel")] = product.astype(into.dtype)
    return unflatten_dict(merged, sep="/")


def with_factors(task: Task, factorisation: LowRank) -> Task:
    """Returns the task whose model has two factors in place of each kernel of `factorisation`."""

    def init(key: Key, batch: Batch) -> Variables:
        variables = task.init(key, batch)
        leaves = flatten_dict(dict(variables["params"]), sep="/")
        for number, (path, rank) in enumerate(sorted(factorisation.ranks.items())):
            kernel = leaves.pop(path)
            shape_in = (*kernel.shape[:-1], rank)
            shape_out = (*(1,) * (kernel.ndim - 2), rank, kernel.shape[-1])
            # Drawn so that an output has the variance that the kernel would give it.
            keys = jax.random.split(jax.random.fold_in(key, number))
            scale = jnp.sqrt(jnp.maximum(kernel.std(), 1e-8) / np.sqrt(rank))
            leaves[_beside(path, FACTORS[0])] = scale * jax.random.normal(keys[0], shape_in, kernel.dtype)
            leaves[_beside(path, FACTORS[1])] = scale * jax.random.normal(keys[1], shape_out, kernel.dtype)
        return {**variables, "params": unflatten_dict(leaves, sep="/")}

    def loss(params: Params, *arguments: Any) -> tuple[Any, Aux]:
        with _factorised():
            return task.loss(params, *arguments)

    return task.with_uses(_within)._replace(init=init, loss=loss)


@contextlib.contextmanager
def _factorised() -> Iterator[None]:
    """Returns a context in which layers with factors compute with them."""

    def intercept(call: Call, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module: Any = context.module
        if not _may_have_factors(module, context) or not module.has_variable("params", FACTORS[0]):
            return call(*args, **kwargs)
        into, out = (module.get_variable("params", name) for name in FACTORS)
        inputs = args[0] if args else kwargs["inputs"]
        narrow = module.clone(parent=None, name=None, features=into.shape[-1], use_bias=False)
        reduced: Any = narrow.apply({"params": {"kernel": into}}, inputs)
        pointwise = nn.Dense(out.shape[-1], use_bias=module.use_bias, dtype=module.dtype)
        wide = {"kernel": out.reshape(out.shape[-2:])}
        if module.use_bias:
            wide["bias"] = module.get_variable("params", "bias")
        return pointwise.apply({"params": wide}, reduced)

    with nn.intercept_methods(intercept):
        yield


def _within(function: Call) -> Call:
    def call(*arguments: Any) -> Any:
        with _factorised():
            return function(*arguments)

    return call


@contextlib.contextmanager
def _kernels() -> Iterator[dict[str, int]]:
    """Returns a context that notes the kernels that can be replaced, and the axes of one layer's kernel."""
    found: dict[str, int] = {}

    def intercept(call: Call, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = call(*args, **kwargs)
        module: Any = context.module
        if _may_have_factors(module, context) and getattr(module, "feature_group_count", 1) == 1:
            found["/".join((*module.path, "kernel"))] = module.get_variable("params", "kernel").ndim
        return outputs

    with nn.intercept_methods(intercept):
        yield found


def _may_have_factors(module: nn.Module, context: nn.module.InterceptorContext) -> bool:
    return type(module) in (nn.Dense, nn.Conv) and context.method_name == "__call__"


def _looks_replaceable(kernel: Any) -> bool:
    return kernel.ndim == 2 or (kernel.ndim == 4 and kernel.shape[-2] > 1)


def _beside(path: str, name: str) -> str:
    return "/".join((*path.split("/")[:-1], name))
