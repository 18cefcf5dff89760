"""The masked words of short sentences, from the words around them: a small encoder with two layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dl import Experiment, PositiveInt, Seed, main, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.losses import NOT_COUNTED
from dl.models.blocks.attention import Attention
from dl.models.blocks.feed_forward import FeedForward
from dl.models.blocks.layer import Context, Stack, TransformerLayer

WORDS = ("[PAD]", "[MASK]", "the", "cat", "dog", "child", "sees", "likes", "a", "bird", "tree", "not")
MASK, LENGTH = 1, 10


class Sentences(ArraySplits):
    token_names = tuple(word if word.startswith("[") else f" {word}" for word in WORDS)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, tokens_BT, segment_ids_BT=None, train=False):
        layer = functools.partial(
            TransformerLayer,
            attention=functools.partial(Attention, num_heads=2),
            feed_forward=functools.partial(FeedForward, hidden_dim=32),
            norm=nn.LayerNorm,
        )
        mask_BTS = None if segment_ids_BT is None else (segment_ids_BT > 0)[:, None]
        x_BTD = (
            nn.Embed(len(WORDS), 16)(tokens_BT) + nn.Embed(LENGTH, 16)(jnp.arange(tokens_BT.shape[1]))[None]
        )
        x_BTD, _ = Stack(layer, 2, name="layers")(x_BTD, Context(mask_BTS=mask_BTS), None, train)
        return nn.Dense(len(WORDS))(x_BTD)


def mask_tokens(key: jax.Array, example: dict[str, jax.Array]) -> dict[str, jax.Array]:
    tokens_T = example["tokens"]
    is_masked_T = jax.random.bernoulli(key, 0.3, tokens_T.shape) & (example["segment_ids"] > 0)
    return {
        **example,
        "tokens": jnp.where(is_masked_T, MASK, tokens_T),
        "targets": jnp.where(is_masked_T, tokens_T.astype(jnp.int32), NOT_COUNTED),
    }


def sentences(size: int, seed: int) -> ArraySource:
    random = np.random.default_rng(seed)
    tokens = np.zeros((size, LENGTH), np.uint8)
    for row in tokens:
        words = ["the", *random.choice(["cat", "dog", "child"], 1), *random.choice(["sees", "likes"], 1)]
        words += ["not"] * random.integers(0, 3) + ["a", *random.choice(["bird", "tree"], 1)]
        row[: len(words)] = [WORDS.index(word) for word in words]
    return ArraySource({"tokens": tokens, "segment_ids": np.int32(tokens > 0)})


def experiment(num_steps: PositiveInt = 60, seed: Seed = 0) -> Experiment:
    """Trains a small encoder.

    Args:
      num_steps: updates.
    """
    model = Encoder()
    return Experiment(
        data=Sentences(
            "masked sentences",
            train=sentences(200, 0),
            evaluations={"validation": sentences(24, 1), "test": sentences(300, 2)},
        ),
        task=task.masked_language_model(model, mask_tokens),
        augment=mask_tokens,
        tx=optimizers.adam(1e-2),
        num_steps=num_steps,
        batch_size=40,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
