"""The compiled programs of generation, and the loop that keeps a fixed number of slots busy.

A slot is a row of the cache. Each text that is written has a slot, and a slot that becomes free takes the
next text. All shapes are fixed, so that a text has the same bits alone and beside any others.

Shapes: R slots, T tokens of a prompt, V tokens of the vocabulary.
"""

import functools
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dl.generation.rows import put_row, row_axes
from dl.generation.sampling import Sampling, Settings, choose
from dl.generation.writing import Writing
from dl.system.onednn import native_kernels
from dl.task.decoder import Cache, Decoder
from dl.types import Variables

SMALLEST_BUCKET = 4  # tokens; shorter prompts are padded to it, so that few programs are compiled
NUM_SLOTS = 16
FEW_SLOTS = 2  # with which one or two texts are written faster, where that does not change bits
# XLA for CPUs gives reductions to its library YNNPACK, whose order of summation depends on the number of
# rows. With this option it gives it only products, in which a row has the same bits among 2 rows and among
# 16. The product of 1 row is computed by another kernel, so that there are never fewer than 2.
_SAME_BITS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}


@functools.cache
def same_bits_options() -> dict[str, Any] | None:
    """Returns compiler options under which a row has the same bits among 2 rows and among 16.

    `None` means that this backend, or this version of XLA, does not have such options.
    """
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=_SAME_BITS)(0.0)
    except jax.errors.JaxRuntimeError:  # there is no such option
        return None
    return _SAME_BITS


def _with_same_bits(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function whose products are not chosen by their size, as those of oneDNN are."""

    def wrapped(*args: Any) -> Any:
        with native_kernels():
            return fn(*args)

    return wrapped


def slots_for(num_texts: int) -> int:
    """Returns the number of slots with which a number of texts is written."""
    return FEW_SLOTS if num_texts <= FEW_SLOTS and same_bits_options() is not None else NUM_SLOTS


@flax.struct.dataclass
class State:
    """What the slots hold.

    Attributes:
      cache: cache of the decoder.
      logits_RV: logits of the next token.
      seen_RV: which tokens occur in the text.
      keys_R: random key of each text.
      counts_R: number of tokens that were chosen.
      settings: settings of each text.
    """

    cache: Cache
    logits_RV: jax.Array
    seen_RV: jax.Array
    keys_R: jax.Array
    counts_R: jax.Array
    settings: Settings


class Programs:
    """The compiled programs of one model: one reads a prompt, for each power of two, and one writes a token.

    Attributes:
      length: largest number of tokens that a row of the cache can hold.
    """

    def __init__(
        self,
        decoder: Decoder,
        variables: Variables,
        *,
        length: int,
        vocab_size: int,
        source_length: int | None = None,
    ):
        """Prepares the programs; each is compiled when it is first called.

        Args:
          decoder: decoder of the model.
          variables: variables of the model.
          length: largest number of tokens of a row.
          vocab_size: number of tokens that can be chosen.
          source_length: largest number of tokens that an encoder reads; `None` for a model without one.
        """
        self.decoder, self.variables = decoder, variables
        self.length, self.vocab_size, self.source_length = length, vocab_size, source_length
        self.axes = row_axes(self._encoded_zeros)
        logits_1V, _ = jax.eval_shape(
            decoder.extend, variables, self._shapes(1), _int32(1, 1), jax.ShapeDtypeStruct((1, 1), bool)
        )
        self.num_outputs = logits_1V.shape[1]
        compiled = functools.partial(jax.jit, compiler_options=same_bits_options())
        self.read = compiled(_with_same_bits(self._read))
        self._admit = compiled(self._admit_row, donate_argnums=1)
        self._write = compiled(_with_same_bits(self._write_tokens), donate_argnums=1)

    def empty(self, num_slots: int) -> State:
        """Returns empty slots."""
        zeros = functools.partial(jnp.zeros, (num_slots, self.num_outputs))
        state = State(
            jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._shapes(num_slots)),
            zeros(jnp.float32),
            zeros(bool),
            jax.random.split(jax.random.key(0), num_slots),
            jnp.zeros(num_slots, jnp.int32),
            Settings.of(Sampling(temperature=0), num_slots),
        )
        # Where the variables are, so that the programs find what they were compiled for.
        return jax.device_put(state, jax.tree.leaves(self.variables)[0].sharding)

    def run(self, texts: Sequence[Writing]) -> Iterator[Writing]:
        """Writes texts until all have ended, and yields a text whenever it has a new token.

        A text that has filled the cache goes on from its last `length // 2` tokens, which are read again. A
        translation ends there.

        Args:
          texts: texts to write, in the order in which they get a slot.
        """
        waiting, num_slots = deque(texts), slots_for(len(texts))
        busy: dict[int, Writing] = {}
        room: dict[int, int] = {}  # how many more tokens the row of a slot can hold
        state = self.empty(num_slots)

        def admit(state: State, slot: int, tokens: list[int]) -> State:
            room[slot] = self.length - len(tokens)
            return self._admitted(state, slot, busy[slot], tokens)

        while waiting or busy:
            for slot in range(num_slots):
                if slot not in busy and waiting:
                    busy[slot] = waiting.popleft()
                    state = admit(state, slot, busy[slot].history)
            is_busy_R = np.array([slot in busy for slot in range(num_slots)])
            chosen, state = self._write(self.variables, state, is_busy_R)
            tokens_R, log_probs_R = jax.device_get(chosen)
            for slot, text in list(busy.items()):
                text.take(int(tokens_R[slot]), float(log_probs_R[slot]))
                room[slot] -= 1
                if room[slot] < 0 and text.source is not None:
                    text.finish()  # what a decoder of translations writes cannot go on without its beginning
                if text.finish_reason is not None:
                    del busy[slot]
                elif room[slot] < 0:  # the row did not take the token
                    state = admit(state, slot, text.history[-max(1, self.length // 2) :])
                yield text

    def _admitted(self, state: State, slot: int, text: Writing, tokens: list[int]) -> State:
        """Returns the slots after one has read tokens, with which the text goes on."""
        seen_V = np.zeros(self.num_outputs, bool)
        seen_V[text.history] = True
        return self._admit(
            self.variables,
            state,
            np.int32(slot),
            self.padded(tokens),
            self.source_of(text),
            seen_V,
            np.array([text.sampling.seed, text.sample, _number_of(text), len(text.tokens)], np.uint32),
            jax.tree.map(np.asarray, Settings.of(text.sampling)),
        )

    def padded(self, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens and which of them are not padding, each 1 × T; T is a power of two or `length`."""
        size = min(max(SMALLEST_BUCKET, 1 << (len(tokens) - 1).bit_length()), self.length)
        return _padded(tokens, size)

    def source_of(self, text: Writing) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the tokens that the encoder reads, padded."""
        if self.source_length is None:
            return None
        return _padded(list(text.source or ()), self.source_length)

    def _encoded_zeros(self, num_rows: int) -> Cache:
        cache = self.decoder.empty(num_rows, self.length)
        if self.decoder.encode is None:
            return cache
        shape = (num_rows, self.source_length or 1)
        return self.decoder.encode(self.variables, cache, jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool))

    def _shapes(self, num_rows: int) -> Any:
        return jax.eval_shape(lambda: self._encoded_zeros(num_rows))

    def _read(self, variables: Variables, prompt: Any, source: Any) -> tuple[jax.Array, Cache]:
        """Returns the logits after a prompt, shape 1 × V, and the cache of one row."""
        cache = self.decoder.empty(1, self.length)
        if self.decoder.encode is not None:
            cache = self.decoder.encode(variables, cache, *source)
        logits_1V, cache = self.decoder.extend(variables, cache, *prompt)
        return logits_1V.astype(jnp.float32), cache

    def _admit_row(
        self,
        variables: Variables,
        state: State,
        slot: jax.Array,
        prompt: Any,
        source: Any,
        seen_V: jax.Array,
        stream: jax.Array,
        settings: Settings,
    ) -> State:
        logits_1V, cache = self._read(variables, prompt, source)
        seed, sample, number, count = stream
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), sample), number)
        return State(
            put_row(state.cache, cache, slot, self.axes),
            state.logits_RV.at[slot].set(logits_1V[0]),
            state.seen_RV.at[slot].set(seen_V),
            state.keys_R.at[slot].set(key),
            state.counts_R.at[slot].set(count.astype(jnp.int32)),
            jax.tree.map(lambda x_R, x_1: x_R.at[slot].set(x_1[0]), state.settings, settings),
        )

    def _write_tokens(self, variables: Variables, state: State, is_busy_R: jax.Array) -> Any:
        """Returns the next tokens and their log-probabilities, and the slots after these tokens."""
        keys_R = jax.vmap(jax.random.fold_in)(state.keys_R, state.counts_R)
        tokens_R, log_probs_R = choose(
            state.logits_RV, state.seen_RV, keys_R, state.settings, self.vocab_size
        )
        rows_R = jnp.arange(len(tokens_R))
        logits_RV, cache = self.decoder.extend(variables, state.cache, tokens_R[:, None], is_busy_R[:, None])
        return (tokens_R, log_probs_R), state.replace(  # type: ignore[attr-defined]
            cache=cache,
            logits_RV=logits_RV.astype(jnp.float32),
            seen_RV=state.seen_RV.at[rows_R, tokens_R].set(True),
            counts_R=state.counts_R + 1,
        )


def _number_of(text: Writing) -> int:
    """Returns a number of a prompt, so that different prompts with the same seed have different draws."""
    return zlib.crc32(np.array([*(text.source or ()), *text.prompt], np.int64).tobytes())


def _padded(tokens: list[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    padded_1T = np.zeros((1, size), np.int32)
    padded_1T[0, : len(tokens)] = tokens
    return padded_1T, np.arange(size)[None] < len(tokens)


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
