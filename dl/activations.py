"""How the activations of a model are split over devices.

Models say where an array has examples and tokens. They do not say over how many devices it is split.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dl.sharding import BATCH_AXES, num_batch_shards

_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def splitting_activations(mesh: Mesh) -> Iterator[None]:
    """A context in which the activations of a traced function are split over a mesh."""
    token = _MESH.set(mesh)
    try:
        yield
    finally:
        _MESH.reset(token)


def split_examples(activations: jax.Array) -> jax.Array:
    """Returns activations whose leading axis, that of the examples, is split as the batch is.

    Where parameters are split too, XLA would otherwise gather the activations of all devices instead of the
    parameters of a layer. Over `tensor` they are whole. Nothing changes outside `splitting_activations`, and
    where the devices do not divide the examples.
    """
    mesh = _MESH.get()
    return activations if mesh is None else _split(activations, mesh, PartitionSpec(BATCH_AXES))


def split_tokens(activations: jax.Array) -> jax.Array:
    """Returns activations of shape examples × tokens × … with their tokens split over `tensor` too.

    Norms, dropout and residual sums treat each token alone. Split like this they need neither memory nor time
    on all devices (Korthikanti et al. 2022, section 4.2.2). Where the devices do not divide the tokens, it is
    `split_examples`.
    """
    mesh = _MESH.get()
    if mesh is None or activations.shape[1] % mesh.shape["tensor"]:
        return split_examples(activations)
    return _split(activations, mesh, PartitionSpec(BATCH_AXES, "tensor"))


def _split(activations: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    if num_batch_shards(mesh) * mesh.shape["tensor"] == 1 or activations.shape[0] % num_batch_shards(mesh):
        return activations
    return jax.lax.with_sharding_constraint(activations, NamedSharding(mesh, spec))
