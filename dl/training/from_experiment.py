"""What another experiment ends with, as the start of this one: a backbone, a teacher, an earlier stage."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dl.experiment import Experiment
from dl.runs.folder import Run
from dl.runs.provenance import code_of, legacy_code_of, module_name
from dl.training.loop import restore_variables, train
from dl.types import Variables
from dl.warm_start import Context


@dataclasses.dataclass(frozen=True)
class FromExperiment:
    """The variables that another experiment ends with, as an `Experiment.warm_start`.

    It is trained when they are first asked for, in a folder beside that of the run that asks, whose name is a
    digest of its options, code and data: later runs that ask for the same find it there. Stopped on the way,
    the same command goes on where it was.

    Attributes:
      experiment_fn: of the other experiment.
      options: that differ from its defaults.
      convert: from its variables to those of the model that asks, such as `initial.nested`.
    """

    experiment_fn: Callable[..., Experiment]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    convert: Callable[[Variables], Variables] = lambda variables: variables

    def __call__(self, context: Context) -> Variables:
        name, code = module_name(self.experiment_fn), code_of(self.experiment_fn)
        parameters = inspect.signature(self.experiment_fn).parameters.values()
        options = {**{p.name: p.default for p in parameters}, **self.options}
        experiment = self.experiment_fn(**options)
        legacy_code = legacy_code_of(self.experiment_fn)
        folders = []
        for digested in (code, legacy_code):
            facts = [name, digested, options, experiment.data.identity.checksum]
            digest = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()
            folders.append(context.folder.parent / f"{name.rpartition('.')[2]}-{digest[:12]}")
        folder = next((folder for folder in folders if folder.exists()), folders[0])
        again = "the same command again"
        run = Run(folder, name, options, code, resume_command=again, legacy_code=legacy_code)
        train(experiment, run, context.mesh)
        return self.convert(jax.device_get(restore_variables(experiment, run, context.mesh)))
