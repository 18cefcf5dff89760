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
    """The loss or the parameters of a run, of each of its seeds, hold a value that is not finite."""


class StorageError(UserError):
    """A file could not be written: the disk is full or read-only, or the folder is gone.

    What was saved before is intact; the status is 74, EX_IOERR of sysexits.h.
    """

    status = 74
