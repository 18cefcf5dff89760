"""The self-test of an exported model: inputs, and what the model itself computes for them.

The inputs are random, so that an exported model never holds examples of the training data.

Shapes: B examples, T tokens.
"""

from typing import Any

import jax
import numpy as np

from dl.data.recorded import itself
from dl.experiment import Experiment, stored_batch
from dl.inference.check import compared
from dl.inference.functions import Decoding, Function
from dl.runs.predictions import outputs_fn
from dl.types import SEGMENT_IDS, Variables

NUM_EXAMPLES = 3
NUM_TOKENS = 5  # of the longest prompt


def self_test(
    experiment: Experiment, variables: Variables, predict: Function, decoding: Decoding | None
) -> dict[str, np.ndarray]:
    """Returns the arrays of self_test.safetensors: `NAME/inputs/FEATURE` and `NAME/outputs/NUMBER`.

    The outputs are computed by the model of the experiment for all examples at once. An output with many
    values is thinned out by `check.compared`.

    Args:
      experiment: the experiment of the model.
      variables: the trained variables.
      predict: the exported function, whose arguments name the features.
      decoding: what writes sequences, if the model can.
    """
    random = np.random.default_rng(0)
    outputs = outputs_fn(experiment)
    assert outputs is not None
    spec = stored_batch(experiment, NUM_EXAMPLES)
    shape = jax.eval_shape(outputs, variables, spec)
    num_tokens = _num_tokens(experiment, shape)
    features = {name: _drawn(random, name, spec[name], num_tokens) for name in predict.arguments[0]}
    others = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
    others |= {"index": np.arange(NUM_EXAMPLES, dtype=np.int32), "mask": np.ones(NUM_EXAMPLES, bool)}
    made = jax.jit(outputs)(variables, {**others, **features})
    test = {f"predict/inputs/{name}": array for name, array in features.items()}
    test |= _expected("predict", made)
    if decoding is not None:
        test |= _of_decoding(random, variables, decoding, num_tokens)
    return test


def _of_decoding(
    random: np.random.Generator, variables: Variables, decoding: Decoding, num_tokens: int
) -> dict[str, np.ndarray]:
    length = max(1, min(NUM_TOKENS, decoding.length - 1))

    def rows(size: int) -> tuple[np.ndarray, np.ndarray]:
        tokens_BT = random.integers(0, num_tokens, (NUM_EXAMPLES, size), np.int32)
        mask_BT = np.arange(size) < np.maximum(size - np.arange(NUM_EXAMPLES), 1)[:, None]
        return tokens_BT, mask_BT

    inputs = dict(zip(("tokens", "mask"), rows(length), strict=True))
    if decoding.source_length is not None:
        inputs |= dict(zip(("source", "source_mask"), rows(decoding.source_length), strict=True))
    next_B = random.integers(0, num_tokens, NUM_EXAMPLES, np.int32)
    logits_BV, cache = jax.jit(decoding.read)(variables, inputs)
    is_token_B1 = np.ones((NUM_EXAMPLES, 1), bool)
    next_logits_BV, _ = jax.jit(decoding.write)(variables, cache, next_B[:, None], is_token_B1)
    return {
        **{f"prefill/inputs/{name}": array for name, array in inputs.items()},
        **_expected("prefill", logits_BV),
        "decode/inputs/tokens": next_B,
        **_expected("decode", next_logits_BV),
    }


def _expected(name: str, outputs: Any) -> dict[str, np.ndarray]:
    leaves = enumerate(jax.tree.leaves(outputs))
    return {f"{name}/outputs/{number}": compared(leaf) for number, leaf in leaves}


def _num_tokens(experiment: Experiment, outputs: Any) -> int:
    """Returns a number that is larger than any token that is drawn for the self-test."""
    data, kind = itself(experiment.data), experiment.task.kind
    known = getattr(getattr(data, "tokenizer", None), "vocab_size", 0) or len(
        getattr(data, "token_names", ())
    )
    if known or kind is None or not kind.reads_tokens or kind.name == "tagging":
        return known or 2
    return outputs.shape[-1]


def _drawn(random: np.random.Generator, name: str, leaf: jax.ShapeDtypeStruct, num_tokens: int) -> np.ndarray:
    """Returns random values of a feature: all values of a pixel, tokens, or normally distributed numbers."""
    dtype, places = np.dtype(leaf.dtype), np.arange(leaf.shape[-1])
    if name == SEGMENT_IDS:  # the rows have different numbers of tokens
        lengths_B1 = np.maximum(len(places) - np.arange(leaf.shape[0]), 1)[:, None]
        return np.broadcast_to(places < lengths_B1, leaf.shape).astype(dtype)
    if name == "positions":
        return np.broadcast_to(places, leaf.shape).astype(dtype)
    if dtype == np.uint8 and len(leaf.shape) > 2:
        return random.integers(0, 256, leaf.shape, dtype)
    if dtype.kind in "iu":
        return random.integers(0, num_tokens, leaf.shape).astype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, leaf.shape).astype(dtype)
    return random.normal(size=leaf.shape).astype(dtype)
