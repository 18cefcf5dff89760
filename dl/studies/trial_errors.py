"""The cause of a failed trial: its options, or its environment (files, network, memory)."""

import jax

from dl.errors import UserError

# An option may be the path of a missing file.
_MAY_BE_NAMED = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# Status codes of XLA errors that may be temporary.
_PASSING = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
_MAX_LENGTH = 300


def is_of_surroundings(error: BaseException, is_built: bool = True) -> bool:
    """Whether an error is caused by the environment of a trial, so that a repetition may work.

    Args:
      error: the error. Its causes and contexts are checked too.
      is_built: whether the experiment was built. Before that, an option may name the missing file.
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
    """Returns an error as one line, with its type if it is not a UserError."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"
