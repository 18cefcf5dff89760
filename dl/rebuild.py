"""The experiment of a run, made again from what its run.json says."""

import dataclasses
import enum
import inspect
import re
import typing
from pathlib import Path
from typing import Any

from dl.command import code_of, legacy_code_of
from dl.errors import UserError
from dl.experiment import Experiment
from dl.lookup import find_experiment
from dl.run import Run


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """A run and its experiment.

    Attributes:
      experiment: as the code makes it now from the run's options.
      run: its folder.
      num_seeds: that were trained at the same time.
      warning: what is not as it was when the run began; empty if all is.
    """

    experiment: Experiment
    run: Run
    num_seeds: int
    warning: str


def open_run(folder: Path) -> Run:
    """Returns the run that a folder holds.

    Raises:
      UserError: it holds none.
    """
    record = Run(folder, "", {}).record if folder.is_dir() else None
    if not isinstance(record, dict) or not isinstance(record.get("options"), dict):
        raise UserError(f"{folder} holds no run; give the folder that a run left, such as runs/NAME-TIME")
    return Run(folder, str(record.get("experiment")), record["options"], str(record.get("code")))


def rebuild(folder: Path, experiment: str | None = None) -> Rebuilt:
    """Imports the run's experiment and calls it with the run's options.

    Args:
      folder: of the run.
      experiment: where the code is now, as NAME or a path; None: where run.json says.

    Raises:
      UserError: there is no run, no such experiment, or it has other options by now.
    """
    run = open_run(folder)
    if experiment is None and not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", run.name):
        raise UserError(f"{folder} names no module as its experiment; add --experiment NAME or its path")
    experiment_fn = find_experiment(experiment or run.name)
    parameters = inspect.signature(experiment_fn).parameters
    options = {name: value for name, value in run.options.items() if name in parameters}
    others = run.options.keys() - parameters.keys() - {"num_seeds"}
    if others:
        raise UserError(
            f"{run.name} has no option {min(others)} any more, which the run was started with; check out "
            "the commit that run.json names"
        )
    kinds = typing.get_type_hints(experiment_fn)
    options = {name: _as_annotated(value, kinds.get(name)) for name, value in options.items()}
    changed = run.code and run.code not in (code_of(experiment_fn), legacy_code_of(experiment_fn))
    warning = f"the code of {run.name} has changed since this run" if changed else ""
    return Rebuilt(experiment_fn(**options), run, int(run.options.get("num_seeds", 1)), warning)


def _as_annotated(value: Any, kind: Any) -> Any:
    """Returns what JSON made of an option in the type that the experiment takes."""
    kinds = {kind, *typing.get_args(kind)}
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    enums = [k for k in kinds if inspect.isclass(k) and issubclass(k, enum.Enum)]
    if enums and isinstance(value, str):
        return enums[0][value]
    return tuple(value) if isinstance(value, list) else value
