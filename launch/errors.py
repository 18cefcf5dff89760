"""The exception for mistakes that the user can correct."""


class UserError(Exception):
    """A mistake that one line explains: the value, what was expected, what to change.

    It is what `dl.errors.UserError` is in `dl`. An import of `dl` would load JAX, which a laptop that only
    starts a job may not have.

    Attributes:
      status: the exit status of a process that ends with this error.
    """

    status = 2
