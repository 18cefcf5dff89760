"""Low-rank factors: the truncated decomposition of NumPy, in a model that computes with the factors."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from dl import Experiment, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.flops import count_flops
from dl.methods import low_rank
from dl.methods.low_rank import LowRank, factorised, merge
from dl.training.loop import train
from tests.helpers import quick_jit

RANDOM = np.random.default_rng(0)


class Image(nn.Module):
    """A strided convolution, one with groups, and two dense layers of which one has no bias."""

    @nn.compact
    def __call__(self, image_BHWC, train=False):
        x_BHWC = nn.relu(nn.Conv(12, (3, 3), strides=2, name="conv")(image_BHWC))
        x_BHWC = nn.Conv(12, (3, 3), feature_group_count=2, name="grouped")(x_BHWC)
        x_BD = nn.relu(nn.Dense(16, use_bias=False, name="hidden")(x_BHWC.reshape(x_BHWC.shape[0], -1)))
        return nn.Dense(3, name="head")(x_BD)


SOURCE = ArraySource(
    {
        "image": RANDOM.uniform(size=(4, 8, 8, 3)).astype(np.float32),
        "label": np.array([0, 1, 2, 1], np.int32),
    }
)
EXPERIMENT = Experiment(
    data=ArraySplits("random", train=SOURCE, evaluations={"test": SOURCE}),
    task=task.classification(Image()),
    tx=optax.adam(0.01),
    num_steps=2,
    batch_size=8,
)


@pytest.fixture(scope="module")
def variables():
    return quick_jit(EXPERIMENT.task.init)(jax.random.key(0), batch())


def batch():
    stored = {**SOURCE[np.arange(4)], "index": np.arange(4), "mask": np.ones(4, bool)}
    return EXPERIMENT.preprocess(stored)


@pytest.mark.parametrize("shape", [(7, 5), (4, 9), (3, 3, 4, 6)])
def test_the_error_is_that_of_eckart_and_young(shape):
    kernel = RANDOM.normal(size=shape)
    singular = np.linalg.svd(kernel.reshape(-1, shape[-1]), compute_uv=False)
    for rank in range(1, len(singular) + 1):
        into, out = factorised(kernel, rank)
        assert into.shape == (*shape[:-1], rank)
        assert out.shape == (*(1,) * (len(shape) - 2), rank, shape[-1])
        product = into.reshape(-1, rank) @ out.reshape(rank, -1)
        error = np.linalg.norm(product - kernel.reshape(-1, shape[-1]))
        assert error == pytest.approx(np.sqrt((singular[rank:] ** 2).sum()), abs=1e-9)
    with pytest.raises(UserError, match=f"is too large; its largest rank is {len(singular)}"):
        factorised(kernel, len(singular) + 1)


def test_the_model_computes_what_its_merged_kernels_compute(variables):
    factorisation = LowRank(ranks={"conv/kernel": 4, "hidden/kernel": 5, "head/kernel": 2})
    smaller, factors = factorisation.changed(EXPERIMENT), factorisation.converted(variables)
    merged = {**variables, "params": merge(factors["params"])}
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, dict(variables))
    outputs = quick_jit(smaller.task.predict)(factors, batch())
    np.testing.assert_allclose(outputs, quick_jit(EXPERIMENT.task.predict)(merged, batch()), atol=1e-5)
    shapes = jax.eval_shape(smaller.task.init, jax.random.key(0), batch())
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, factors)
    # conv: 4·4 outputs of a 3×3×3 kernel; grouped: 3×3×6; hidden: 192 inputs.
    flops = 2 * 4 * (16 * (27 * 4 + 4 * 12) + 16 * 54 * 12 + 192 * 5 + 5 * 16 + 16 * 2 + 2 * 3)
    assert count_flops(smaller.task.predict, factors, batch()) == flops


def test_the_full_rank_changes_no_output(variables):
    factorisation = LowRank(ranks={"conv/kernel": 12, "hidden/kernel": 16})
    outputs = quick_jit(factorisation.changed(EXPERIMENT).task.predict)(
        factorisation.converted(variables), batch()
    )
    np.testing.assert_allclose(outputs, quick_jit(EXPERIMENT.task.predict)(variables, batch()), atol=1e-5)


def test_energy_gives_the_smallest_rank_that_suffices(variables):
    planned = low_rank.plan(variables, energy=0.6, experiment=EXPERIMENT)
    assert "grouped/kernel" not in planned.ranks
    leaves = flatten_dict(variables["params"], sep="/")
    for path, rank in planned.ranks.items():
        matrix = np.asarray(leaves[path]).reshape(-1, leaves[path].shape[-1])
        energies = np.cumsum(np.linalg.svd(matrix, compute_uv=False) ** 2) / (matrix**2).sum()
        assert energies[rank - 1] >= 0.6 > (energies[rank - 2] if rank > 1 else 0)
        assert rank * sum(matrix.shape) < matrix.size


@pytest.mark.parametrize("budget", [0.8, 0.5, 0.3])
def test_a_budget_is_met_by_the_cheapest_singular_values(budget):
    """With two kernels of one shape, all ranks are compared with the best pair of ranks by brute force."""
    kernels = [RANDOM.normal(size=(8, 8)) @ np.diag(np.geomspace(1, low, 8)) for low in (0.5, 0.01)]
    tree = {"params": {name: {"kernel": kernel} for name, kernel in zip("ab", kernels, strict=True)}}
    ranks = low_rank.plan(tree, budget=budget).ranks
    spectra = [np.linalg.svd(kernel, compute_uv=False) ** 2 for kernel in kernels]

    def size(rank):
        return min(16 * rank, 64)

    def loss(pair):
        return sum(s[r:].sum() / s.sum() if 16 * r < 64 else 0.0 for s, r in zip(spectra, pair, strict=True))

    chosen = tuple(ranks.get(f"{name}/kernel", 8) for name in "ab")
    assert sum(map(size, chosen)) <= budget * 128
    pairs = [(a, b) for a in range(1, 9) for b in range(1, 9) if size(a) + size(b) <= sum(map(size, chosen))]
    assert loss(chosen) <= min(map(loss, pairs)) + 0.05


@pytest.mark.slow
def test_factors_are_trained(variables):
    factorisation = LowRank(**dataclasses.asdict(low_rank.plan(variables, budget=0.6, experiment=EXPERIMENT)))
    start = factorisation.converted(variables)
    result = train(dataclasses.replace(factorisation.changed(EXPERIMENT), warm_start=start))
    before, after = (flatten_dict(params, sep="/") for params in (start["params"], result.params))
    assert before.keys() == after.keys()
    assert not np.array_equal(before["hidden/kernel_in"], after["hidden/kernel_in"])


def test_a_mistake_is_one_line(variables):
    for ranks, message in (
        ({}, "factorises no kernel"),
        ({"head/kernel": 0}, "rank of head/kernel"),
        ({"head/bias": 2}, "head/bias is not a kernel"),
    ):
        with pytest.raises(UserError, match=message):
            LowRank(ranks=ranks)
    for path in ("grouped/kernel", "missing/kernel"):
        with pytest.raises(UserError, match=f"{path} is not the kernel of an nn.Dense"):
            LowRank(ranks={path: 2}).changed(EXPERIMENT)
    with pytest.raises(UserError, match="the model has no kernel missing/kernel"):
        LowRank(ranks={"missing/kernel": 2}).converted(variables)
    with pytest.raises(UserError, match="give one of them, such as energy=0.95"):
        low_rank.plan(variables)
    with pytest.raises(UserError, match="budget=0.001 cannot be met"):
        low_rank.plan(variables, budget=0.001)
    with pytest.raises(UserError, match="no kernel has fewer parameters"):
        low_rank.plan(variables, energy=1.0)
