"""The exceptions that mean "the user can mend this"."""


class UserError(Exception):
    """A mistake that one line explains: the value, what was expected, what to change.

    `dl.experiment.main` and `python -m dl` print it without a traceback and exit with its `status`.
    Every other exception is a defect and keeps its traceback.

    Attributes:
      status: of the process that ends with it.
    """

    status = 2


class Diverged(UserError):
    """The loss of a run, of each of its seeds, is no finite number any more."""
