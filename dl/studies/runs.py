"""The runs of a study: runs of one experiment, each in a separate folder inside the folder of the study."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import Options
from dl.runs.console import Console
from dl.runs.definition import Definition
from dl.runs.provenance import module_name
from dl.runs.run import Run
from dl.studies.folder import Study
from dl.studies.workers import Worker
from dl.training.loop import train_run
from dl.training.population import Population
from dl.training.single import SINGLE, Single

ResumeCommand = Callable[[Path], str]
"""From the folder of a study to the command line that resumes it."""


@dataclasses.dataclass(frozen=True)
class StudyRuns:
    """Trains the runs of a study.

    Attributes:
      experiment_fn: the function of the experiment.
      study: the open study, in whose folder the runs lie.
      mesh: the devices.
      resume_command: the command line that resumes a stopped run. `None` means a sentence about the same
        call.
      worker: this process as one of several workers. `None` means that it is alone.
    """

    experiment_fn: Callable[..., Experiment]
    study: Study
    mesh: Mesh
    resume_command: ResumeCommand | None = None
    worker: Worker | None = None

    def train(
        self, part: str, definition: Definition, population: Population | Single = SINGLE
    ) -> dict[str, Any]:
        """Trains one run without output and without its baseline. A finished run is read from its folder.

        Args:
          part: the name of the run's folder.
          definition: the definition of the experiment.
          population: the seeds and options of the runs that share one program.

        Returns:
          The content of result.json.

        Raises:
          UserError: the errors of `train`.
        """
        run = Run(self.study.folder / part, definition, resume_line(self.study, self.resume_command))
        console = Console(is_quiet=True)
        if self.worker is not None:
            self.worker.prepare(run.folder)
            console = self.worker.console
        return train_run(run, self.mesh, population=population, with_baseline=False, console=console).record


def resume_line(study: Study, resume_command: ResumeCommand | None) -> str:
    """Returns the command line that resumes a study, or a sentence about the same call."""
    if resume_command is None:
        return f"the same call with folder={str(study.folder)!r}"
    return resume_command(study.folder)


def with_defaults(experiment_fn: Callable[..., Experiment], options: Mapping[str, Any] | None) -> Options:
    """Returns all options of an experiment: those given, and the defaults of the others.

    Raises:
      UserError: the experiment has no such option.
    """
    defaults = {name: p.default for name, p in inspect.signature(experiment_fn).parameters.items()}
    check_options(experiment_fn, options or {})
    return {**defaults, **(options or {})}


def check_options(experiment_fn: Callable[..., Experiment], names: Mapping[str, Any]) -> None:
    """Raises UserError if one of the names is not an option of the experiment."""
    known = inspect.signature(experiment_fn).parameters
    for name in names:
        if name not in known:
            raise UserError(
                f"{name!r} is not an option of {module_name(experiment_fn)}; choose one of {', '.join(known)}"
            )
