"""Pretrained weights: safetensors files in the layout of Hugging Face, read into the image models of `dl`.

For language models, see `hugging_face`. This module needs the extra `weights`: pip install 'dl[weights]'.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from dl.errors import UserError
from dl.models.weights.files import fit_to, read_tensors
from dl.models.weights.names import LinenPath, NameMap
from dl.types import Variables
from dl.warm_start import ADAPTERS, WarmStart, nested, without_adapters

Fit = Callable[[LinenPath, np.ndarray, tuple[int, ...]], np.ndarray]


def load_pretrained(
    source: str | Path,
    variables: Variables,
    name_map: NameMap,
    *,
    skip: Sequence[str] = (),
    revision: str | None = None,
    fit: Fit | None = None,
) -> Variables:
    """Returns `variables` with the values of `source`, as NumPy arrays in the dtypes of `variables`.

    For example, this keeps the new head of a network::

        variables = model.init(key, batch["image"])
        load_pretrained("microsoft/resnet-50", variables, torch_names.resnet, skip=["head"])

    Args:
      source: a safetensors file, a folder with one file or with an index of several files, or the name of a
        model on the Hugging Face hub, such as `microsoft/resnet-50`.
      variables: the variables of the model, or their shapes: `jax.eval_shape(model.init, key, images)`.
      name_map: name map of the model's family, from `dl.models.weights.names`.
      skip: top-level modules of the model that are not read, such as `head` for another number of classes.
        Their values in `variables` are returned unchanged.
      revision: commit on the hub, so that the weights cannot change later. `None` means the newest commit.
      fit: function from a path, its values and the shape in the model to values of that shape, if the shapes
        differ: `vit.fit_positions` for images of another size.

    Raises:
      UserError: a tensor is missing, unexpected or has another shape, or the source cannot be read.
    """
    targets = flax.traverse_util.flatten_dict(dict(variables))
    kept = {path: leaf for path, leaf in targets.items() if path[1] in skip or path[-1] in ADAPTERS}
    found: dict[LinenPath, tuple[str, np.ndarray]] = {}
    skipped = {path[1] for path in kept if path[1] in skip}
    for name, array in read_tensors(source, revision=revision):
        if name.endswith(".num_batches_tracked"):  # PyTorch's counter, without effect at a fixed momentum
            continue
        mapped = name_map(name, array)
        if mapped is None:
            raise UserError(
                f"{source}: the tensor {name!r} does not belong to the model family {name_map.__name__!r}; "
                "use another name map or another source"
            )
        path, values = mapped
        if path[1] in skip:
            skipped.add(path[1])
            continue
        if path in found:
            raise UserError(
                f"{source}: both tensors {found[path][0]!r} and {name!r} map to {'/'.join(path)}; remove one"
            )
        if fit is not None and path in targets:
            values = fit(path, values, tuple(targets[path].shape))
        found[path] = name, values
    for module in skip:
        if module not in skipped:
            raise UserError(
                f"skip={module!r} is neither a module of the model nor of {source}; remove or correct it"
            )
    wanted = {path: leaf for path, leaf in targets.items() if path not in kept}
    loaded = fit_to(str(source), found, wanted)
    cast = {path: values.astype(wanted[path].dtype) for path, values in loaded.items()}
    return flax.traverse_util.unflatten_dict({path: {**kept, **cast}[path] for path in targets})


def pretrained(
    source: str | Path, name_map: NameMap, under: str, skip: Sequence[str] = (), **options: Any
) -> WarmStart:
    """Returns a warm start of the submodule `under` with pretrained weights.

    Args:
      source: source of the weights, as for `load_pretrained`.
      name_map: name map of the submodule's family.
      under: name of the submodule.
      skip: modules of the submodule that are not read. They are initialised at random.
      options: other options of `load_pretrained`.
    """

    def start(model_shapes: Variables) -> Variables:
        shapes = {name: without_adapters(tree[under]) for name, tree in model_shapes.items() if under in tree}
        if not shapes:
            known = ", ".join(model_shapes["params"])
            raise UserError(f"under={under!r} is not a module of the model; it must be one of {known}")
        return nested(load_pretrained(source, shapes, name_map, skip=skip, **options), under, drop=skip)

    return start
