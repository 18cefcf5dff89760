"""Whose fault it is that a trial failed: its own options', or what surrounds it (files, network, memory)."""

import jax

from dl.errors import UserError

_MAY_BE_NAMED = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # by an option that is a path
_PASSING = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")  # of XLA's errors
_MAX_LENGTH = 300


def is_of_surroundings(error: BaseException, is_built: bool = True) -> bool:
    """Whether an error says nothing about the options of a trial: the same may work another time.

    Args:
      error: or what it was raised from, or while another was handled.
      is_built: whether the experiment had been built; before that, a file that is not there may be one that
        an option names.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and (is_built or not isinstance(cause, _MAY_BE_NAMED)):
            return True
        if isinstance(cause, MemoryError) or (
            isinstance(cause, UserError) and cause.status != UserError.status
        ):
            return True
        if isinstance(cause, jax.errors.JaxRuntimeError) and str(cause).startswith(_PASSING):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def one_line(error: BaseException) -> str:
    """Returns an error in one line; with its type where it is not a UserError."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"
