"""Digests of trees of arrays, which compare two runs and detect a flipped bit."""

import hashlib
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dl.sharding import path_name


def leaf_digests(tree: Any, gather: bool = False) -> dict[str, str]:
    """Returns the SHA-256 of each leaf by its path, over dtype, shape and bytes (C order).

    Leaves that are sharded over several processes are left out, or gathered on every process.
    """
    digests = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            if not gather:
                continue
            whole = NamedSharding(leaf.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
            leaf = jax.jit(_as_plain, out_shardings=whole)(leaf)
        array = np.asarray(_as_plain(leaf))
        content = hashlib.sha256(f"{array.dtype.name} {array.shape} ".encode())
        content.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
        digests[path_name(path)] = content.hexdigest()
    return digests


def tree_digest(tree: Any) -> str:
    """Returns one SHA-256 over the names and digests of all leaves, in the order of their names."""
    content = hashlib.sha256()
    for name, digest in sorted(leaf_digests(tree, gather=True).items()):
        content.update(f"{name} {digest}\n".encode())
    return content.hexdigest()


def _as_plain(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf
