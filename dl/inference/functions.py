"""The functions of a trained model that are exported: pure functions of variables, without the experiment.

Each example is computed on its own, by `vmap`. So a model that uses its batch size as a Python number can be
exported for any batch size too. The first axis of every input, output and array of a cache is the example.

Shapes: B examples or rows, T tokens of a prompt, S tokens of an encoder's input, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from dl.errors import UserError
from dl.experiment import Experiment, stored_batch
from dl.generation.writer import decoder_for
from dl.runs.predictions import outputs_fn
from dl.sharding import path_name
from dl.task import Decoder
from dl.types import Batch, Variables

Named = dict[str, Any]
"""Arrays by name."""


class Function(NamedTuple):
    """A function that can be exported.

    Attributes:
      name: name of the function: `predict`, `prefill` or `decode`.
      call: function from the variables by name and the arguments to the outputs.
      arguments: shapes and dtypes of the arguments. The number of examples is a symbol.
    """

    name: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]


class Decoding(NamedTuple):
    """What is needed to write with a model.

    Attributes:
      decoder: decoder of the model.
      length: largest number of tokens of a row.
      source_length: number of tokens that the encoder reads; `None` for a model without one.
    """

    decoder: Decoder
    length: int
    source_length: int | None

    def read(self, variables: Variables, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, Any]:
        """Returns the logits after prompts, shape B × V, and the cache.

        Args:
          variables: variables of the model.
          inputs: `tokens` and `mask`, shape B × T; for an encoder also `source` and `source_mask`, B × S.
        """
        cache = self.decoder.empty(inputs["tokens"].shape[0], self.length)
        if self.decoder.encode is not None:
            cache = self.decoder.encode(variables, cache, inputs["source"], inputs["source_mask"])
        return self.write(variables, cache, inputs["tokens"], inputs["mask"])

    def write(
        self, variables: Variables, cache: Any, tokens_BT: jax.Array, mask_BT: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Returns the logits after the new tokens, shape B × V, and the cache with these tokens."""
        logits_BV, cache = self.decoder.extend(variables, cache, tokens_BT, mask_BT)
        return logits_BV.astype(jnp.float32), cache


def by_name(variables: Variables) -> Named:
    """Returns the leaves of variables by their path, such as `params/Dense_0/kernel`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def as_tree(named: Mapping[str, Any], like: Variables) -> Variables:
    """Returns named arrays as a tree with the structure of another.

    Raises:
      UserError: the names or shapes differ.
    """
    wanted = {name: leaf.shape for name, leaf in by_name(like).items()}
    found = {name: leaf.shape for name, leaf in named.items()}
    if differing := sorted(name for name, _ in found.items() ^ wanted.items()):
        raise UserError(
            f"the array {differing[0]} is not the one of the experiment (shape {found.get(differing[0])}, "
            f"expected {wanted.get(differing[0])}); check out the commit that run.json names"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in wanted])


def predict_function(experiment: Experiment, shapes: Variables, platform: str) -> Function:
    """Returns the function from stored features to outputs. It includes the preprocessing.

    It takes only the features that the outputs depend on.

    Args:
      experiment: the experiment of the model.
      shapes: shapes and dtypes of the variables.
      platform: platform that the model can be lowered for.

    Raises:
      UserError: the task has no function `predict`.
    """
    outputs = outputs_fn(experiment)
    if outputs is None:
        raise UserError("the task of the experiment has no function predict; add one")

    def one(variables: Variables, batch: Batch) -> Any:
        made = outputs(variables, {name: x[None] for name, x in batch.items()})
        return jax.tree.map(lambda x: x[0], made)

    def predict(named: Named, features: Named) -> Any:
        size = next(iter(features.values())).shape[0]
        batch = {**features, "index": jnp.arange(size, dtype=jnp.int32), "mask": jnp.ones(size, bool)}
        return jax.vmap(one, (None, 0))(as_tree(named, shapes), batch)

    (size,) = export.symbolic_shape("batch")
    spec = stored_batch(experiment, 1)
    features = {
        name: jax.ShapeDtypeStruct((size, *spec[name].shape[1:]), spec[name].dtype)
        for name in _used_features(outputs, shapes, spec, experiment.task.input_name, platform)
    }
    return Function("predict", predict, (features,))


def _used_features(
    outputs: Callable[[Variables, Batch], Any],
    shapes: Variables,
    spec: Named,
    input_name: str,
    platform: str,
) -> list[str]:
    """Returns the names of the features that outputs depend on."""
    features = [name for name in sorted(spec) if name not in ("index", "mask")]

    def of_features(of_spec: Named, variables: Variables) -> Any:
        mask, index = jnp.ones(1, bool), jnp.zeros(1, jnp.int32)
        return outputs(variables, {**of_spec, "mask": mask, "index": index})

    # Lowering drops the arguments that are not used. Features come first among the flat arguments.
    lowered = export.export(jax.jit(of_features), platforms=[platform])
    kept = lowered({name: spec[name] for name in features}, shapes).module_kept_var_idx
    used = {features[k] for k in kept if k < len(features)}
    return sorted(used | ({input_name} & set(features))) or features


def decoding_of(experiment: Experiment) -> Decoding | None:
    """Returns what is needed to write with a model; `None` for one that does not write sequences."""
    task, kind, spec = experiment.task, experiment.task.kind, experiment.data.train.spec
    if kind is None or kind.name not in ("language_model", "sequence_to_sequence"):
        return None
    if kind.name == "sequence_to_sequence":
        if task.decoder is None or task.decoder.encode is None or experiment.preprocess is not None:
            return None
        return Decoding(task.decoder, spec[kind.target].shape[0], spec[task.input_name].shape[0])
    return Decoding(decoder_for(experiment), spec[task.input_name].shape[0], None)


def decoding_functions(decoding: Decoding, shapes: Variables) -> tuple[Function, Function]:
    """Returns `prefill`, which reads prompts, and `decode`, which reads one more token of each row.

    The cache is a tuple of arrays whose shapes do not change. Its first axis is the row.
    """

    def prefill_one(variables: Variables, inputs: Named) -> tuple[jax.Array, Any]:
        logits_1V, cache = decoding.read(variables, {name: x[None] for name, x in inputs.items()})
        return logits_1V[0], cache

    def decode_one(variables: Variables, leaves: tuple[jax.Array, ...], token: jax.Array) -> Any:
        cache = jax.tree.unflatten(structure, leaves)
        logits_1V, cache = decoding.write(variables, cache, token[None, None], jnp.ones((1, 1), bool))
        return logits_1V[0], tuple(jax.tree.leaves(cache))

    def prefill(named: Named, inputs: Named) -> Any:
        logits_BV, cache = jax.vmap(prefill_one, (None, 0))(as_tree(named, shapes), inputs)
        return logits_BV, tuple(jax.tree.leaves(cache))

    def decode(named: Named, cache: tuple[jax.Array, ...], tokens_B: jax.Array) -> Any:
        return jax.vmap(decode_one, (None, 0, 0))(as_tree(named, shapes), cache, tokens_B)

    rows, num_tokens = export.symbolic_shape("batch, tokens", constraints=[f"tokens <= {decoding.length}"])
    (size,) = export.symbolic_shape("batch")  # of another function, so in a scope without those constraints
    _, cache = jax.eval_shape(prefill_one, shapes, _prompt(decoding, (), 1))
    structure = jax.tree.structure(cache)
    leaves = tuple(jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(cache))
    return (
        Function("prefill", prefill, (_prompt(decoding, (rows,), num_tokens),)),
        Function("decode", decode, (leaves, jax.ShapeDtypeStruct((size,), jnp.int32))),
    )


def _prompt(decoding: Decoding, rows: tuple[Any, ...], num_tokens: Any) -> Named:
    """Returns the shapes and dtypes of prompts; `rows` is the axis of the rows, or empty."""

    def pair(name: str, mask: str, length: Any) -> Named:
        shape = (*rows, length)
        return {name: jax.ShapeDtypeStruct(shape, jnp.int32), mask: jax.ShapeDtypeStruct(shape, jnp.bool_)}

    prompt = pair("tokens", "mask", num_tokens)
    if decoding.source_length is not None:
        prompt |= pair("source", "source_mask", decoding.source_length)
    return prompt
