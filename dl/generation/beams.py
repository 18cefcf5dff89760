"""Beam search: the most probable continuation that a search of limited width finds.

Shapes: K beams, V tokens of the vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dl.generation.rows import take_rows
from dl.generation.slots import Programs
from dl.generation.writing import Writing
from dl.task.decoder import Cache
from dl.types import Variables

_NEVER = -1e9  # log-probability of a beam that does not exist yet


class Beam(NamedTuple):
    """A continuation: the sum of its log-probabilities, its tokens, and the log-probability of each."""

    total: float
    tokens: tuple[int, ...] = ()
    log_probabilities: tuple[float, ...] = ()

    def extended(self, total: float, token: int, log_probability: float) -> "Beam":
        """Returns the continuation with one more token and its new total."""
        return Beam(total, (*self.tokens, token), (*self.log_probabilities, log_probability))


class BeamSearch:
    """The compiled programs of a beam search of one model.

    A continuation that has ended is ranked by the sum of its log-probabilities, divided by its number of
    tokens to the power of `length_penalty`. The search ends when `num_beams` continuations have ended and the
    best beam, ranked in the same way, is not better than the worst of them. This is the search of
    `transformers` with `early_stopping=False`.
    """

    def __init__(self, programs: Programs):
        self._programs = programs
        self._best = jax.jit(self._best_tokens)
        self._follow = jax.jit(self._follow_beams, donate_argnums=1)

    def write(self, text: Writing) -> None:
        """Writes a text: its best continuation. The search ends where the context is full.

        Args:
          text: text to write; its prompt is not empty.
        """
        programs, sampling = self._programs, text.sampling
        num_beams, penalty = sampling.num_beams, sampling.length_penalty
        max_tokens = min(sampling.max_tokens, programs.length - len(text.prompt) + 1)
        prompt, source = programs.padded(list(text.prompt)), programs.source_of(text)
        logits_1V, row = programs.read(programs.variables, prompt, source)
        first_K = jnp.zeros(num_beams, jnp.int32)
        logits_KV, cache = logits_1V[first_K], take_rows(row, first_K, programs.axes)
        beams = [Beam(0.0)] + [Beam(_NEVER)] * (num_beams - 1)
        ended: list[Beam] = []

        def score(beam: Beam) -> float:
            return beam.total / len(beam.tokens) ** penalty

        for _ in range(max_tokens):
            totals_K = np.array([beam.total for beam in beams], np.float32)
            found = jax.device_get(self._best(logits_KV, totals_K))
            candidates = [
                (parent, beams[parent].extended(float(total), int(token), float(log_prob)))
                for total, parent, token, log_prob in zip(*found, strict=True)
            ]
            is_full = len(candidates[0][1].tokens) == max_tokens
            # Only the best K candidates can end, as in a search without the other K.
            for _, beam in candidates[:num_beams]:
                if (is_full or beam.tokens[-1] == text.end_id) and beam.total > _NEVER / 2:
                    ended.append(beam)
            ended = sorted(ended, key=score, reverse=True)[:num_beams]
            going_on = [pair for pair in candidates if pair[1].tokens[-1] != text.end_id][:num_beams]
            if is_full:
                break
            beams = [beam for _, beam in going_on]
            if len(ended) == num_beams and score(beams[0]) <= score(ended[-1]):
                break
            parents_K = np.array([parent for parent, _ in going_on], np.int32)
            tokens_K = np.array([beam.tokens[-1] for beam in beams], np.int32)
            logits_KV, cache = self._follow(programs.variables, cache, parents_K, tokens_K)
        for token, log_prob in zip(ended[0].tokens, ended[0].log_probabilities, strict=True):
            if text.finish_reason is None:
                text.take(token, log_prob)
        text.finish()

    def _best_tokens(self, logits_KV: jax.Array, totals_K: jax.Array) -> tuple[jax.Array, ...]:
        """Returns the best 2·K candidates: totals, numbers of beams, tokens and their log-probabilities."""
        num_beams, num_outputs = logits_KV.shape
        log_probs_KV = jax.nn.log_softmax(logits_KV)
        is_token_1V = jnp.arange(num_outputs)[None] < self._programs.vocab_size
        totals_KV = jnp.where(is_token_1V, log_probs_KV + totals_K[:, None], 2 * _NEVER)
        totals, places = jax.lax.top_k(totals_KV.ravel(), min(2 * num_beams, totals_KV.size))
        return totals, places // num_outputs, places % num_outputs, log_probs_KV.ravel()[places]

    def _follow_beams(
        self, variables: Variables, cache: Cache, parents_K: jax.Array, tokens_K: jax.Array
    ) -> Any:
        """Returns the logits of the next token and the cache after each beam has read its token."""
        cache = take_rows(cache, parents_K, self._programs.axes)
        is_token_K1 = jnp.ones((len(tokens_K), 1), bool)
        logits_KV, cache = self._programs.decoder.extend(variables, cache, tokens_K[:, None], is_token_K1)
        return logits_KV.astype(jnp.float32), cache
