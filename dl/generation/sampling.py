"""How the next token is chosen: the settings of a request, and the choice for all rows at the same time.

Shapes: R rows, V tokens of the vocabulary.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dl.errors import UserError
from dl.ranges import NON_NEGATIVE, POSITIVE, PROBABILITY, Range, check, check_count

_COUNT = Range(1, 2**31 - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """The settings of a request to a language model.

    The steps are applied in the order of `repetition_penalty`, `temperature`, `top_k`, `top_p`, `min_p`, as
    in `transformers`. Sample i of a prompt with a seed is always the same, whatever is generated beside it.

    Attributes:
      max_tokens: largest number of tokens to generate.
      temperature: number that the logits are divided by. 0 chooses the most probable token.
      top_k: number of most probable tokens that can be chosen. `None` means all.
      top_p: the most probable tokens can be chosen whose probabilities sum to this, in (0, 1] (Holtzman et
        al. 2020). `None` means all.
      min_p: a token can be chosen if its probability is at least this fraction of the largest one, in [0, 1]
        (Nguyen et al. 2024). `None` means all.
      repetition_penalty: number that the logit of each token that occurs in the prompt or the text is divided
        by if it is positive, else multiplied by; once for each token, however often it occurs (Keskar et al.
        2019). 1 means no penalty.
      num_samples: number of texts for each prompt.
      num_beams: number of beams of a beam search. 1 means sampling.
      length_penalty: for a beam search, exponent of the number of tokens by which the sum of the
        log-probabilities is divided.
      stop: strings. The text ends before the first occurrence of one.
      seed: random seed. The random numbers depend on the seed, the prompt and the number of the sample.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    num_samples: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Sampling":
        """Returns the settings of options by name. Raises UserError if there is no such option."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else f"the options are {', '.join(names)}"
                raise UserError(f"there is no option {name}; {hint}")
        return cls(**options)

    def __post_init__(self) -> None:
        for name in ("max_tokens", "num_samples", "num_beams"):
            check_count(name, getattr(self, name), _COUNT)
        check_count("seed", self.seed, Range(0, 2**32 - 1))
        check("temperature", self.temperature, NON_NEGATIVE)
        check("repetition_penalty", self.repetition_penalty, POSITIVE)
        check("length_penalty", self.length_penalty, Range())
        if self.top_k is not None:
            check_count("top_k", self.top_k, _COUNT)
        if self.top_p is not None:
            check("top_p", self.top_p, Range(0, 1, above_low=True))
        if self.min_p is not None:
            check("min_p", self.min_p, PROBABILITY)
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        stop = tuple(stop) if isinstance(stop, Iterable) else ("",)
        if not all(isinstance(string, str) and string for string in stop):
            raise UserError("one of the strings in stop is empty, or not a string; remove it")
        object.__setattr__(self, "stop", stop)
        if self.num_beams > 1:
            self._check_beams()

    def _check_beams(self) -> None:
        default = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_samples"):
            if getattr(self, name) != default[name]:
                raise UserError(
                    f"num_beams={self.num_beams} is a beam search, which does not use {name}="
                    f"{getattr(self, name)}; remove one of the two"
                )


class Settings(NamedTuple):
    """The numbers of `Sampling` for each row, as arrays; one compiled program serves all of them."""

    temperature_R: jax.Array
    top_k_R: jax.Array
    top_p_R: jax.Array
    min_p_R: jax.Array
    penalty_R: jax.Array

    @classmethod
    def of(cls, sampling: Sampling, num_rows: int = 1) -> "Settings":
        """Returns the same settings for a number of rows."""

        def rows(value: float | None, default: float, dtype: type = jnp.float32) -> jax.Array:
            return jnp.full(num_rows, default if value is None else value, dtype)

        return cls(
            rows(sampling.temperature, 1),
            rows(sampling.top_k, 2**31 - 1, jnp.int32),
            rows(sampling.top_p, 1),
            rows(sampling.min_p, 0),
            rows(sampling.repetition_penalty, 1),
        )


def choose(
    logits_RV: jax.Array, seen_RV: jax.Array, keys_R: jax.Array, settings: Settings, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the next token of each row, and its log-probability, each of shape R.

    The log-probability is that of the distribution of the model: temperature 1, without any restriction.

    Args:
      logits_RV: logits of the next token.
      seen_RV: which tokens have occurred in a row, for the repetition penalty.
      keys_R: random keys.
      settings: settings of each row.
      vocab_size: number of tokens that can be chosen, the first ones of V. A model may have more outputs than
        its tokenizer has tokens.
    """
    is_token_1V = jnp.arange(logits_RV.shape[1])[None] < vocab_size
    restricted_RV = restricted_logits(jnp.where(is_token_1V, logits_RV, -jnp.inf), seen_RV, settings)
    is_random_R = settings.temperature_R > 0

    def with_noise(x_RV: jax.Array) -> jax.Array:
        noise_RV = jax.vmap(lambda key: jax.random.gumbel(key, x_RV.shape[1:]))(keys_R)
        return jnp.where(is_random_R[:, None], x_RV + noise_RV, x_RV)

    # The largest of logits and Gumbel noise is a draw from their softmax.
    noisy_RV = jax.lax.cond(is_random_R.any(), with_noise, lambda x_RV: x_RV, restricted_RV)
    tokens_R = jnp.argmax(noisy_RV, axis=-1).astype(jnp.int32)
    log_probs_RV = jax.nn.log_softmax(logits_RV)
    return tokens_R, jnp.take_along_axis(log_probs_RV, tokens_R[:, None], axis=-1)[:, 0]


def restricted_logits(logits_RV: jax.Array, seen_RV: jax.Array, settings: Settings) -> jax.Array:
    """Returns the logits of the distribution that tokens are drawn from; -inf where none can be drawn."""
    penalty_R1 = settings.penalty_R[:, None]
    punished_RV = jnp.where(logits_RV > 0, logits_RV / penalty_R1, logits_RV * penalty_R1)
    x_RV = jnp.where(seen_RV, punished_RV, logits_RV)
    x_RV = x_RV / jnp.where(settings.temperature_R > 0, settings.temperature_R, 1)[:, None]
    top_k_R, top_p_R = settings.top_k_R, settings.top_p_R
    x_RV = jax.lax.cond((top_k_R < x_RV.shape[1]).any(), _keep_top_k, lambda x_RV, _: x_RV, x_RV, top_k_R)
    x_RV = jax.lax.cond((top_p_R < 1).any(), _keep_top_p, lambda x_RV, _: x_RV, x_RV, top_p_R)
    lowest_R = x_RV.max(axis=-1) + jnp.log(settings.min_p_R)
    return jnp.where(x_RV < lowest_R[:, None], -jnp.inf, x_RV)


def _keep_top_k(x_RV: jax.Array, top_k_R: jax.Array) -> jax.Array:
    bits_RV = jax.lax.bitcast_convert_type(x_RV, jnp.uint32)
    # As unsigned integers, these are in the order of the floats: negative ones have all bits turned over.
    order_RV = jnp.where(bits_RV >> 31 == 1, ~bits_RV, bits_RV | jnp.uint32(1 << 31))
    is_kept_RV = _largest(order_RV, lambda is_kept_RV: is_kept_RV.sum(axis=-1) >= top_k_R)
    return jnp.where(is_kept_RV, x_RV, -jnp.inf)


def _keep_top_p(x_RV: jax.Array, top_p_R: jax.Array) -> jax.Array:
    probs_RV = jax.nn.softmax(x_RV)
    order_RV = jax.lax.bitcast_convert_type(probs_RV, jnp.uint32)
    is_kept_RV = _largest(
        order_RV, lambda is_kept_RV: jnp.where(is_kept_RV, probs_RV, 0).sum(axis=-1) >= top_p_R
    )
    return jnp.where(is_kept_RV | (top_p_R == 1)[:, None], x_RV, -jnp.inf)


def _largest(order_RV: jax.Array, is_enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns which values are at least the largest threshold for which they are enough.

    The threshold is found bit by bit, which is much faster than sorting the vocabulary. If the values are
    never enough, all are kept.
    """

    def with_bit(k: jax.Array, threshold_R: jax.Array) -> jax.Array:
        higher_R = threshold_R | jnp.uint32(1) << (31 - k).astype(jnp.uint32)
        return jnp.where(is_enough(order_RV >= higher_R[:, None]), higher_R, threshold_R)

    start_R = jnp.zeros(order_RV.shape[0], jnp.uint32)
    return order_RV >= jax.lax.fori_loop(0, 32, with_bit, start_R)[:, None]
