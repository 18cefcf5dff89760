import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dl import optimizers
from dl.errors import UserError
from dl.models.mlp import MLP
from dl.sharding import (
    Rule,
    fill_mesh,
    format_mesh,
    make_mesh,
    num_batch_shards,
    parse_mesh,
    put,
    replicated,
    state_shardings,
    unsplit_notice,
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


@pytest.mark.parametrize(
    "text", ["", "8", "data", "data=0", "data=-2", "data=-1,fsdp=-1", "rows=2", "data=2,data=4"]
)
def test_a_mesh_that_is_not_understood_is_one_line(text):
    with pytest.raises(UserError, match="write axis=size") as caught:
        parse_mesh(text)
    assert "\n" not in str(caught.value)


def test_one_axis_gets_the_devices_that_the_others_leave():
    assert format_mesh(make_mesh(parse_mesh("data=-1")).shape) == "data=8"
    assert format_mesh(make_mesh(parse_mesh("fsdp=2,data=-1,tensor=2")).shape) == "data=2,fsdp=2,tensor=2"
    assert fill_mesh(parse_mesh("data=2,fsdp=-1"), 16) == {"data": 2, "fsdp": 8}
    with pytest.raises(UserError, match="3 does not divide the 8 devices") as caught:
        make_mesh(parse_mesh("data=-1,tensor=3"))
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
    said = (
        r"params/Dense_0/kernel of shape \(128, 256\) into 3 parts over 'tensor', and 3 does not divide 128"
    )
    with pytest.raises(UserError, match=said) as caught:
        state_shardings(state, mesh, [("Dense_0/kernel", PartitionSpec("tensor"))])
    assert "\n" not in str(caught.value)


def test_a_rule_may_hold_where_it_divides_alone(state):
    shardings = state_shardings(
        state,
        make_mesh({"tensor": 3}),
        [Rule("Dense_0/kernel", PartitionSpec("tensor"), where_it_divides=True)],
    )
    assert shardings.params["Dense_0"]["kernel"].spec == PartitionSpec()


def test_fsdp_splits_the_largest_dimension_that_a_rule_leaves(state):
    rules = [
        ("Dense_0/kernel", PartitionSpec(None, "tensor")),  # 128 × 256
        ("Dense_1/kernel", PartitionSpec()),  # 256 × 64
        ("Dense_0/bias", PartitionSpec("tensor")),
    ]

    def specs(mesh):
        params = state_shardings(state, make_mesh(mesh), rules).params
        leaves = [params["Dense_0"]["kernel"], params["Dense_1"]["kernel"], params["Dense_0"]["bias"]]
        return [leaf.spec for leaf in leaves]

    replicated = PartitionSpec()
    assert specs({"fsdp": 2, "tensor": 2}) == [
        PartitionSpec("fsdp", "tensor"),
        replicated,
        PartitionSpec("tensor"),
    ]
    # A rule about an axis that the mesh does not have changes nothing.
    assert specs({"fsdp": 4}) == [PartitionSpec(None, "fsdp"), replicated, replicated]
    assert specs({"data": 8}) == [replicated] * 3


def test_a_mesh_that_splits_nothing_over_tensor_is_noticed(state):
    mesh = make_mesh({"data": 2, "tensor": 4})
    assert "splits no parameter" in unsplit_notice(state_shardings(state, mesh).params, mesh)
    rules = [("Dense_0/kernel", PartitionSpec(None, "tensor"))]
    assert unsplit_notice(state_shardings(state, mesh, rules).params, mesh) == ""
    assert unsplit_notice(state_shardings(state, make_mesh()).params, make_mesh()) == ""


def test_put_places_every_leaf(mesh8):
    tree = put({"a": np.arange(16)}, replicated(mesh8))
    assert len(tree["a"].addressable_shards) == 8
    np.testing.assert_array_equal(tree["a"], np.arange(16))
