"""Checks of the data when a run opens them: names of features, ranges of whole numbers, labels."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from dl.data.source import ArraySource, bytes_each, chunks
from dl.errors import UserError
from dl.types import Source

RESERVED = ("index", "mask")  # features that every batch adds: row of each example, and False on padding
MAX_READ_BYTES = 2**30  # a source that decodes more than this is checked as it is read, not when it is opened


def check_names(source: Source) -> None:
    """Raises UserError if a feature has a reserved name."""
    for name in RESERVED:
        if name in source.spec:
            raise UserError(
                f"the data have a feature called {name}, which is a reserved name; rename it, for example to "
                f"{'example_mask' if name == 'mask' else 'row'}"
            )


def check_spec(source: Source, examples: Mapping[str, np.ndarray]) -> None:
    """Raises UserError if examples of a source differ from its `spec` in names, shapes or device dtypes."""
    canonical = jax.dtypes.canonicalize_dtype
    for name, leaf in source.spec.items():
        if name not in examples:
            raise UserError(
                f"the spec of the source has a feature {name}, but its examples have only "
                f"{', '.join(examples)}; correct the spec or the examples"
            )
        shape, dtype = examples[name].shape[1:], examples[name].dtype
        if shape != tuple(leaf.shape) or canonical(dtype) != canonical(leaf.dtype):
            raise UserError(
                f"the source returns {name} as {dtype} of shape {shape}, but its spec states "
                f"{leaf.dtype} of shape {tuple(leaf.shape)}; correct the spec or the examples"
            )


def check_numbers(split: str, source: Source) -> None:
    """Raises UserError for a whole number that does not fit into 32 bits, if JAX computes in 32 bits."""
    for rows, values in _read(source, lambda leaf: _is_cut_off(leaf.dtype)):
        for name in values:
            check_fits(f"{name} of row {{row}} of the {split} split", rows, values[name])


def check_fits(what: str, rows: np.ndarray, values: np.ndarray) -> None:
    """Raises UserError for the first value that does not fit into 32 bits.

    Args:
      what: description of a value, with `{row}` for its row.
      rows: row of each example in its split.
      values: values of the examples.
    """
    if not _is_cut_off(values.dtype):
        return
    bounds = np.iinfo(jax.dtypes.canonicalize_dtype(values.dtype))
    is_out = (values < bounds.min) | (values > bounds.max)
    if is_out.any():
        first = tuple(np.argwhere(is_out)[0])
        raise UserError(
            f"{what.format(row=rows[first[0]])} is {values[first]}, which does not fit into {bounds.dtype}; "
            "store smaller numbers, or set JAX_ENABLE_X64=1"
        )


def check_classes(split: str, source: Source, name: str, num_classes: int) -> None:
    """Raises UserError for the first label of a split that is not a class.

    Args:
      split: name of the split.
      source: source of the split. A large source that is not in memory is not read here: see
        `MAX_READ_BYTES`. A source with an attribute `num_classes` is not read either, because it checks its
        labels itself.
      name: name of the feature that holds the labels.
      num_classes: number of outputs of the model.
    """
    stated = getattr(source, "num_classes", None)
    if stated is not None and stated > num_classes:
        raise UserError(
            f"the {split} split has {stated} classes, and the model has {num_classes} outputs; give it "
            f"{stated}"
        )
    if stated is not None:
        return
    for rows, values in _read(source, lambda leaf: True, (name,)):
        check_are_classes(f"{name} of row {{row}} of the {split} split", rows, values[name], num_classes)


def check_are_classes(what: str, rows: np.ndarray, values: np.ndarray, num_classes: int) -> None:
    """Raises UserError for the first value that is not in 0, …, num_classes - 1; see `check_fits`."""
    is_whole = values.dtype.kind in "biu"
    is_class = (values >= 0) & (values < num_classes)  # a NaN is neither
    if not is_whole:
        is_class &= values == np.floor(values)
    if is_class.all() and is_whole:
        return
    first = tuple(np.argwhere(~is_class)[0]) if not is_class.all() else (0,) * values.ndim
    problem = f"{what.format(row=rows[first[0]])} is {values[first]} ({values.dtype})"
    if not is_class.all():
        raise UserError(
            f"{problem}, and the model's {num_classes} outputs stand for the classes 0 to {num_classes - 1}; "
            f"correct the {'tokens' if what.startswith('tokens') else 'labels'}, or the number of outputs"
        )
    raise UserError(f"{problem}; store classes as whole numbers: {what.split()[0]}.astype(np.int32)")


def is_read_at_once(source: Source) -> bool:
    """Returns whether the checks read a source when it is opened."""
    if isinstance(source, ArraySource):
        return True
    return len(source) * bytes_each(source) <= MAX_READ_BYTES


def _is_cut_off(dtype: np.dtype) -> bool:
    return dtype.kind in "iu" and jax.dtypes.canonicalize_dtype(dtype) != dtype


def _read(source, is_wanted, names=None) -> Iterator[tuple[np.ndarray, Mapping[str, np.ndarray]]]:  # type: ignore[no-untyped-def]
    wanted = [name for name, leaf in source.spec.items() if (not names or name in names) and is_wanted(leaf)]
    if not wanted or not is_read_at_once(source):
        return
    if isinstance(source, ArraySource):
        yield np.arange(len(source)), {name: source.arrays[name] for name in wanted}
        return
    for rows in chunks(len(source)):
        part = source[rows]
        yield rows, {name: np.asarray(part[name]) for name in wanted}
