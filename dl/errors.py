"""The exceptions for mistakes that the user can correct."""


class UserError(Exception):
    """A mistake that one line explains: the value, what was expected, what to change.

    `dl.experiment.main` and `python -m dl` print it without a traceback and exit with its `status`.
    Every other exception is a defect and keeps its traceback.

    Attributes:
      status: the exit status of a process that ends with this error.
    """

    status = 2


class Diverged(UserError):
    """Training diverged: for every seed of a run, the loss or a parameter is not finite."""


class StorageError(UserError):
    """A file could not be written: the disk is full or read-only, or the folder is gone.

    Everything that was saved before is intact. The exit status is 74, `EX_IOERR` of sysexits.h.
    """

    status = 74
