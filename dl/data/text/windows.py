"""Windows: examples of equal length from one long sequence of tokens, without a copy of it.

Shapes: B examples, T tokens of a window, N tokens of the sequence.
"""

import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from dl.data.folds import join
from dl.errors import UserError
from dl.losses import NOT_COUNTED
from dl.ranges import STEPS, Range, check_count
from dl.types import Batch, Source

_BLOCK = 2**24  # tokens that are hashed at once


class Tokens(Protocol):
    """A sequence of tokens: a NumPy array of unsigned integers, a `np.memmap` or `token_files.TokenFiles`."""

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, positions: Any, /) -> Any:
        """Returns the tokens at positions, an array of any shape or a slice."""
        ...


@runtime_checkable
class Joinable(Tokens, Protocol):
    """Tokens that are joined and cut without being read, such as those of `token_files.TokenFiles`."""

    def then(self, other: Any) -> Any: ...

    def part(self, start: int, stop: int) -> Any: ...


class TokenWindows:
    """The windows of T tokens of a sequence, as a source with random access.

    An example has the features `tokens`, int32 (T,), and `targets`, int32 (T,): the token that follows each
    token, or `losses.NOT_COUNTED`. Row i starts at token i × stride. The last row ends at the end of the
    sequence, so it may overlap the row before it by more than the others. A sequence of at most T tokens is
    one row, which repeats its last token without counting it.

    A source in evaluation counts every token after the first exactly once: in each row only the targets that
    no row before it has counted. With `context`, rows overlap such that at least that many tokens of the row
    precede each counted token, except in the first row. The row is then a sliding window. A larger context
    gives a lower loss and takes T / (T + 1 - context) times as long.

    The arrays of a small sequence lie on the device, where each step cuts its windows (`gather`).

    Attributes:
      length: T.
      stride: distance between the starts of rows.
      num_classes: size of the vocabulary, or None. Every token that is read is checked against it.
    """

    def __init__(
        self,
        tokens: Tokens,
        length: int,
        *,
        stride: int | None = None,
        context: int | None = None,
        vocab_size: int | None = None,
    ):
        """Describes the windows. Nothing is read.

        Args:
          tokens: sequence of at least 2 tokens.
          length: T.
          stride: distance between the starts of rows in training, from 1 to T. A smaller stride gives more
            varied rows, and more rows in an epoch. `None` means T.
          context: smallest number of tokens before a counted token, from 1 to T, in evaluation. `None` means
            training: every row counts all its targets.
          vocab_size: number of tokens of the vocabulary. `None` means that tokens are not checked.

        Raises:
          UserError: an argument is out of range, both `stride` and `context` are given, or there are fewer
            than 2 tokens.
        """
        self.length = check_count("sequence_length", length, STEPS)
        self._counts_once = context is not None
        if context is not None:
            if stride is not None:
                raise UserError("a source has either a stride, for training, or a context, for evaluation")
            stride = self.length + 1 - check_count("eval_context", context, Range(1, self.length))
        self.stride = self.length if stride is None else check_count("stride", stride, Range(1, self.length))
        if len(tokens) < 2:
            raise UserError(
                f"a text of {len(tokens)} tokens has no token to predict; give a text of at least 2 tokens"
            )
        self.num_classes = vocab_size
        self._tokens = tokens
        self._last = max(len(tokens) - 1 - self.length, 0)  # start of the last row

    @property
    def spec(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        window = jax.ShapeDtypeStruct((self.length,), np.dtype(np.int32))
        return {"tokens": window, "targets": window}

    def __len__(self) -> int:
        return -(-self._last // self.stride) + 1

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self._rows(np, self._checked, np.asarray(indices, np.int64))

    def head(self, num_tokens: int) -> np.ndarray:
        """Returns the first tokens of the sequence that the windows are cut from; all if it has fewer."""
        return self._checked(slice(num_tokens))

    @property
    def nbytes(self) -> int:
        """Size of the sequence in bytes."""
        return len(self._tokens) * self._tokens.dtype.itemsize

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The arrays that `gather` reads: the whole sequence."""
        return {"tokens": self._checked(slice(None))}

    def gather(self, arrays: Batch, index_B: jax.Array) -> Batch:
        """Returns the rows `index_B` as `__getitem__` does, computed on the device from `arrays`."""
        return self._rows(jnp, arrays["tokens"].__getitem__, index_B)

    def divide(self, others: Sequence[Source], num_folds: int) -> list[tuple[Source, Source]]:
        """Returns the training rows and the held-out rows of each fold: one piece of the text is held out.

        Rows that are drawn at random would overlap with held-out rows. Held-out rows count each token once,
        with the context of the evaluations.

        Args:
          others: other sources; the sequences of those that are windows follow this sequence.
          num_folds: number of pieces, of equal length.

        Raises:
          UserError: the text is too short.
        """
        windows = [other for other in others if isinstance(other, TokenWindows)]
        tokens = self._tokens
        for other in windows:
            if isinstance(tokens, Joinable):
                tokens = tokens.then(other._tokens)
            else:
                tokens = np.concatenate([np.asarray(tokens), np.asarray(other._tokens)])
        if len(tokens) < 2 * num_folds:
            raise UserError(
                f"folds={num_folds} is too many for a text of {len(tokens)} tokens; each needs at least two"
            )
        context = self.length + 1 - windows[0].stride if windows else 1
        make = functools.partial(TokenWindows, length=self.length, vocab_size=self.num_classes)
        bounds = np.linspace(0, len(tokens), num_folds + 1).astype(int).tolist()
        folds: list[tuple[Source, Source]] = []
        for start, stop in itertools.pairwise(bounds):
            rest = [_piece(tokens, 0, start), _piece(tokens, stop, len(tokens))]
            train = [make(part, stride=self.stride) for part in rest if len(part) > 1]
            folds.append((join(train), make(_piece(tokens, start, stop), context=context)))
        return folds

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 over the tokens and how they are cut."""
        how = f"windows {self.length} {self.stride} {self._counts_once} "
        return hashlib.sha256(f"{how}{tokens_checksum(self._tokens)}".encode()).hexdigest()

    def _rows(self, xp: Any, read: Any, index_B: Any) -> dict[str, Any]:
        """Returns rows in NumPy or JAX (`xp`), whose integers must hold N."""
        start_B = xp.minimum(index_B * self.stride, self._last)
        positions = xp.add.outer(start_B, xp.arange(self.length + 1))
        tokens = read(xp.minimum(positions, len(self._tokens) - 1)).astype(np.int32)
        counted = positions[..., 1:] < len(self._tokens)
        if self._counts_once:
            ends_B1 = ((index_B - 1) * self.stride + self.length)[..., None]  # of the rows before them
            counted &= (positions[..., 1:] > ends_B1) | (index_B == 0)[..., None]
        targets = xp.where(counted, tokens[..., 1:], np.int32(NOT_COUNTED))
        return {"tokens": tokens[..., :-1], "targets": targets}

    def _checked(self, positions: Any) -> np.ndarray:
        tokens = np.asarray(self._tokens[positions])
        if self.num_classes is not None and (largest := int(tokens.max(initial=0))) >= self.num_classes:
            raise UserError(
                f"the text has the token {largest}, and the vocabulary has the tokens 0 to "
                f"{self.num_classes - 1}; use the tokenizer that the tokens were made with"
            )
        return tokens


def _piece(tokens: Tokens, start: int, stop: int) -> Tokens:
    return tokens.part(start, stop) if isinstance(tokens, Joinable) else tokens[start:stop]


def smallest_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned integer type that holds all tokens of a vocabulary."""
    return np.min_scalar_type(max(vocab_size - 1, 0))


def tokens_checksum(tokens: Tokens) -> str:
    """Returns the SHA-256 of a sequence of tokens: its attribute `checksum`, or that of its content."""
    stated = getattr(tokens, "checksum", None)
    if isinstance(stated, str):
        return stated
    digest = hashlib.sha256(f"{tokens.dtype.name} {len(tokens)} ".encode())
    for start in range(0, len(tokens), _BLOCK):
        block = np.asarray(tokens[start : start + _BLOCK])
        digest.update(block.astype(block.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()
