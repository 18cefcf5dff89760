"""Loads a run: makes its experiment from run.json, and reads its variables."""

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dl.data.recorded import remembering
from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import PositiveInt
from dl.runs.definition import Definition
from dl.runs.differences import differences, in_one_line
from dl.runs.find import find_experiment, find_installed
from dl.runs.folder import RunFolder
from dl.runs.provenance import code_of, legacy_code_of
from dl.runs.recorded_options import recorded_definition, recorded_value
from dl.sharding import make_mesh
from dl.system.bucket import url_of
from dl.system.files import expand, named_path
from dl.training.identity import describe
from dl.training.result import Result
from dl.training.run_options import DEFAULTS, OF_COMPRESSION, Find, find_teacher, with_run_options


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """A run and its experiment.

    Attributes:
      experiment: the experiment that the present code makes with the options of the run.
      run: the folder of the run.
      num_seeds: number of seeds that were trained at the same time.
      warning: what has changed since the run began; empty if nothing has.
      definition: the function of the experiment with the options of the run, which resumes the run.
      own: the function of the experiment with its own options only.
    """

    experiment: Experiment
    run: RunFolder
    num_seeds: int
    warning: str
    definition: Definition
    own: Definition

    def with_compression(self, records: Sequence[Mapping[str, Any]]) -> Definition:
        """Returns the definition of the run with other compressions in place of its own."""
        of_run = {name: value for name, value in self.run.options.items() if name in DEFAULTS}
        return with_options_of_run(self.own, {**of_run, "compression": list(records)}, self.run)


def open_run(folder: Path) -> RunFolder:
    """Returns the run in a folder.

    Raises:
      UserError: the folder does not hold a run.
    """
    run = RunFolder(folder)
    record = run.record if folder.is_dir() else None
    if not isinstance(record, dict) or not isinstance(record.get("options"), dict):
        raise UserError(f"{folder} does not hold a run; give the folder of a run, such as runs/NAME-TIME")
    return run


def rebuild(folder: Path, experiment: str | Callable[..., Experiment] | None = None) -> Rebuilt:
    """Imports the experiment of a run and calls it with the options of the run.

    Args:
      folder: the folder of the run.
      experiment: the function, the NAME or the path of the experiment. `None` means the name in run.json,
        which must be an experiment that is installed beside `dl`; other code is not trusted.

    Raises:
      UserError: there is no run, the experiment does not exist or is not installed, or its options have
        changed.
    """
    run = open_run(folder)
    if experiment is None:
        experiment_fn = find_installed(run.name, _what_to_add(run.name))
    else:
        experiment_fn = find_experiment(experiment) if isinstance(experiment, str) else experiment
    parameters = inspect.signature(experiment_fn).parameters
    num_seeds = recorded_value("num_seeds", run.options.get("num_seeds", 1), PositiveInt)
    others = run.options.keys() - parameters.keys() - {"num_seeds", *DEFAULTS, *OF_COMPRESSION}
    if others:
        asked = run.name if experiment is None else f"the experiment that was given for {run.name}"
        advice = "" if experiment is None else "give the run's own experiment, or "
        raise UserError(
            f"{asked} has no option {min(others)} any more, which the run was started with; {advice}check "
            "out the commit that run.json names"
        )
    changed = run.code and run.code not in (code_of(experiment_fn), legacy_code_of(experiment_fn))
    warning = f"the code of {run.name} has changed since this run" if changed else ""
    of_run = {name: value for name, value in run.options.items() if name not in parameters}
    own = recorded_definition(experiment_fn, run.options, run.name)
    definition = with_options_of_run(own, of_run, run)
    return Rebuilt(definition.build(), run, num_seeds, warning, definition, own)


def with_options_of_run(
    definition: Definition, of_run: Mapping[str, Any], run: RunFolder, find: Find | None = None
) -> Definition:
    """Returns a definition with the options of a run, such as its precision and its compression.

    Args:
      definition: the function of the experiment with its options.
      of_run: the options of the run, as run.json holds them.
      run: the folder of the run, from which a compressed run starts.
      find: returns the function of a teacher's experiment for its name. `None` means that it is that of the
        definition, or an installed one.
    """

    def find_it(name: str) -> Callable[..., Experiment]:
        return definition.fn if name == definition.name else find_teacher(name)

    def change(made: Experiment) -> Experiment:
        made = with_run_options(made, of_run, find or find_it)
        is_compressed = of_run.get("compression") is not None
        return dataclasses.replace(made, warm_start=run.initial_variables) if is_compressed else made

    return definition.changed(of_run, change)


def load_run(
    folder: Path | str,
    experiment: Experiment | Definition | Callable[..., Experiment] | str | None = None,
    *,
    mesh: Mesh | None = None,
) -> Result:
    """Loads a run that was trained earlier, with its metrics, history, variables and predictions.

    The data are not needed. If the run has not finished, the variables are those of its last checkpoint.

    Args:
      folder: the folder of the run, on the disk or gs://BUCKET/FOLDER.
      experiment: the experiment of the run, its function, its NAME or the path of its file. `None` means that
        it is made from run.json, which must name an experiment that is installed beside `dl`.
      mesh: the devices. `None` means all devices.

    Raises:
      UserError: the folder does not hold a run, or the experiment is not known or is another one.
    """
    folder = named_path(folder) if url_of(folder) else expand(Path(folder))
    run = open_run(folder)
    with remembering(run.record, folder):
        if isinstance(experiment, Experiment | Definition):
            made = Definition.of(experiment).build()
            there = run.record or {}
            facts = {"dataset": dataclasses.asdict(made.data.identity), **describe(made)}
            if found := differences(there, {**there, **facts}):
                raise UserError(
                    f"{folder} holds another run ({in_one_line(found)}); pass the experiment of the run"
                )
        else:
            rebuilt = rebuild(folder, experiment)
            made = rebuilt.experiment
            if rebuilt.warning:
                warnings.warn(rebuilt.warning, stacklevel=2)
    return Result(made, run.result or {}, run=run, mesh=mesh or make_mesh())


def _what_to_add(name: str) -> str:
    """Returns a hint for importing code that is not installed."""
    if not all(part.isidentifier() for part in name.split(".")) or len(name) > 80:
        where = "--experiment NAME, or the path of its file"
    elif name == "experiment" or name.startswith("__main__"):  # made by a script or in a notebook
        where = "--experiment PATH, a file that defines the function experiment"
    else:
        where = f"--experiment {name if '.' in name else f'{name}.py'}"
    return f"in Python, pass the experiment to dl.load_run; if you trust its code, add {where}"
