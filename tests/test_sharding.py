import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dl import optimizers
from dl.errors import UserError
from dl.models.mlp import MLP
from dl.sharding import (
    format_mesh,
    make_mesh,
    num_batch_shards,
    parse_mesh,
    put,
    replicated,
    state_shardings,
)
from dl.training.state import init_state


def test_a_mesh_is_read_and_written():
    assert parse_mesh("data=4, fsdp=2") == {"data": 4, "fsdp": 2}
    mesh = make_mesh({"data": 2, "fsdp": 2})
    assert mesh.size == 4
    assert num_batch_shards(mesh) == 4
    assert format_mesh(mesh.shape) == "data=2,fsdp=2"
    assert format_mesh(make_mesh({"data": 1}).shape) == "data=1"
    assert make_mesh().shape["data"] == 8


@pytest.mark.parametrize("text", ["", "8", "data", "data=0", "data=-1", "rows=2", "data=2,data=4"])
def test_a_mesh_that_is_not_understood_is_one_line(text):
    with pytest.raises(UserError, match="write axis=size") as caught:
        parse_mesh(text)
    assert "\n" not in str(caught.value)


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match="needs 16 devices, and this machine has 8"):
        make_mesh({"data": 16})


@pytest.fixture(scope="module")
def state():
    model = MLP(hidden=(256,), num_classes=64)
    return jax.eval_shape(
        lambda: init_state(
            lambda key, batch: model.init(key, batch["image"]),
            optimizers.adam(1e-3),
            {"image": jnp.zeros((1, 128))},
            0,
        )
    )


def test_fsdp_splits_large_leaves_and_their_moments_and_replicates_small_ones(state):
    mesh = make_mesh({"data": 2, "fsdp": 4})
    shardings = state_shardings(state, mesh)
    hidden = shardings.params["Dense_0"]["kernel"]  # (128, 256)
    assert hidden.spec == PartitionSpec(None, "fsdp")
    assert shardings.params["Dense_0"]["bias"].spec == PartitionSpec()
    params = jax.tree.map(
        lambda leaf, s: jax.device_put(np.zeros(leaf.shape), s), state.params, shardings.params
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    on_one = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(params))
    assert on_one == pytest.approx(total / 4, rel=0.05)
    moments = {str(s.spec) for s in jax.tree.leaves(shardings.opt_state)}
    assert str(hidden.spec) in moments


def test_a_rule_decides_a_parameter_and_its_moments(state):
    mesh = make_mesh({"data": 2, "tensor": 4})
    rule = (r"Dense_1/kernel", PartitionSpec("tensor", None))
    shardings = state_shardings(state, mesh, [rule])
    assert shardings.params["Dense_1"]["kernel"].spec == rule[1]
    found = [s for s in jax.tree.leaves(shardings.opt_state) if s.spec == rule[1]]
    assert len(found) == 2  # Adam's mean and variance


def test_a_rule_that_matches_nothing_is_refused(state):
    with pytest.raises(UserError, match="matches no parameter; paths look like"):
        state_shardings(state, make_mesh(), [("attention", PartitionSpec("tensor"))])


def test_a_rule_that_does_not_divide_is_refused(state):
    mesh = make_mesh({"tensor": 3})
    with pytest.raises(UserError, match="into 3 parts"):
        state_shardings(state, mesh, [("Dense_0/kernel", PartitionSpec("tensor"))])


def test_put_places_every_leaf(mesh8):
    tree = put({"a": np.arange(16)}, replicated(mesh8))
    assert len(tree["a"].addressable_shards) == 8
    np.testing.assert_array_equal(tree["a"], np.arange(16))
