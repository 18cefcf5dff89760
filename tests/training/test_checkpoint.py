import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import optimizers
from dl.errors import UserError
from dl.models.mlp import MLP
from dl.runs.digest import leaf_digests, tree_digest
from dl.sharding import make_mesh, state_shardings
from dl.training.checkpoint import Checkpoints
from dl.training.state import init_state


@pytest.fixture(scope="module")
def state():
    model = MLP(hidden=(64,), num_classes=8)
    return init_state(
        lambda key, batch: model.init(key, batch["image"]),
        optimizers.adam(1e-3),
        {"image": jnp.zeros((1, 16))},
        0,
    )


def abstract(state, mesh):
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        state,
        state_shardings(state, mesh),
    )


def at_step(state, step):
    """Returns a state that differs from those of other steps in every parameter."""
    params = jax.tree.map(lambda p: p + step, state.params)
    return state.replace(step=jnp.int32(step), params=params)


def saved(folder, state, *steps):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, at_step(state, step), {"seen": step / 3})
    checkpoints.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def largest_file(folder):
    """Returns the file with most of the tensors; descriptions of them may be larger."""
    return max((f for f in folder.rglob("d/*") if f.is_file()), key=lambda f: f.stat().st_size)


@pytest.mark.slow
def test_what_is_saved_is_restored_bit_for_bit(folder, state, mesh1):
    saved(folder, state, 3)
    restored, progress = Checkpoints(folder).restore(abstract(state, mesh1))
    assert tree_digest(restored) == tree_digest(at_step(state, 3))
    assert jax.random.key_data(restored.rng).tolist() == jax.random.key_data(state.rng).tolist()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert progress == {"seen": 1.0}


@pytest.mark.slow
def test_a_checkpoint_restores_onto_another_mesh(folder, state, mesh1):
    mesh = make_mesh({"data": 2, "fsdp": 4})
    saved(folder, jax.device_put(state, state_shardings(state, mesh1)), 1)
    restored, _ = Checkpoints(folder).restore(abstract(state, mesh))
    assert tree_digest(restored) == tree_digest(at_step(state, 1))
    assert restored.params["Dense_0"]["kernel"].sharding.mesh.shape["fsdp"] == 4


def test_nothing_saved_is_nothing_restored(folder, state, mesh1):
    assert Checkpoints(folder).restore(abstract(state, mesh1)) is None


def test_two_are_kept(folder, state):
    saved(folder, state, 1, 2, 3)
    assert Checkpoints(folder).steps == [2, 3]


def test_the_state_may_be_donated_right_after_saving(folder, state, mesh1):
    consume = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s.params), donate_argnums=0)
    checkpoints = Checkpoints(folder)
    donated = at_step(state, 5)
    expected = tree_digest(donated)
    donated = jax.tree.map(jnp.copy, donated)
    checkpoints.save(5, donated, {})
    consume(donated)
    checkpoints.close()
    assert tree_digest(Checkpoints(folder).restore(abstract(state, mesh1))[0]) == expected


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "metadata", "types"])
def test_damage_is_noticed_and_the_older_checkpoint_taken(folder, state, mesh1, damage):
    saved(folder, state, 1, 2)
    victim = largest_file(folder / "2" / "state")
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        victim.unlink()
    elif damage == "types":  # which say what is a key
        shutil.rmtree(folder / "2" / "state" / "array_metadatas")
    else:
        (folder / "2" / "extra" / "metadata").write_text("{")
    checkpoints = Checkpoints(folder)
    with pytest.warns(UserWarning, match=r"2 is damaged.*trying an older one"):
        restored, _ = checkpoints.restore(abstract(state, mesh1))
    assert tree_digest(restored) == tree_digest(at_step(state, 1))
    checkpoints.save(2, at_step(state, 2), {})  # and the run can pass the damaged step again
    checkpoints.close()
    restored, _ = Checkpoints(folder).restore(abstract(state, mesh1))
    assert int(restored.step) == 2


def test_with_every_checkpoint_damaged_the_user_is_told(folder, state, mesh1):
    saved(folder, state, 1)
    largest_file(folder / "1" / "state").unlink()
    with pytest.raises(UserError, match="1 is damaged.*no checkpoint is intact"):
        Checkpoints(folder).restore(abstract(state, mesh1))


def test_an_unfinished_checkpoint_is_not_taken_for_one(folder, state, mesh1):
    saved(folder, state, 1, 2)
    (folder / "2").rename(folder / "2.orbax-checkpoint-tmp-123")
    restored, _ = Checkpoints(folder).restore(abstract(state, mesh1))
    assert int(restored.step) == 1


def test_a_digest_sees_values_names_shapes_and_dtypes():
    base = {"a": jnp.zeros((2, 3))}
    others = [
        {"a": jnp.zeros((2, 3)).at[1, 2].set(1e-30)},
        {"b": jnp.zeros((2, 3))},
        {"a": jnp.zeros((3, 2))},
        {"a": jnp.zeros((2, 3), jnp.int32)},
        {"a": -jnp.zeros((2, 3))},
    ]
    assert len({tree_digest(tree) for tree in [base, *others]}) == 6
    assert tree_digest(base) == tree_digest({"a": np.zeros((2, 3), np.float32)})


def test_digests_cover_scalars_empty_leaves_bfloat16_and_keys():
    tree = {
        "s": jnp.int32(3),
        "e": jnp.zeros((0,)),
        "h": jnp.ones(2, jnp.bfloat16),
        "k": jax.random.key(0),
    }
    assert set(leaf_digests(tree)) == set(tree)


@pytest.mark.parametrize(
    ("message", "is_shown"),
    [
        ("future: <_GatheringFuture finished exception=Exception('See full TensorStore details')>", False),
        ("future: <Task finished exception=ValueError('Error reading in OCDBT database')>", False),
        ("future: <Task finished exception=ValueError('of somebody else')>", True),
    ],
)
def test_reads_that_fail_beside_the_one_that_is_reported_are_not_printed(tmp_path, message, is_shown):
    Checkpoints(tmp_path / "checkpoints").close()
    record = logging.LogRecord("asyncio", logging.ERROR, "base_events.py", 1, message, (), None)
    assert bool(logging.getLogger("asyncio").filter(record)) == is_shown
