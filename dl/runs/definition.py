"""The definition of a run: a function that returns an experiment, and the options of the function.

The experiment and the identity of its run come from this one object, so they always agree.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from dl.errors import UserError
from dl.experiment import Experiment
from dl.runs.differences import as_recorded
from dl.runs.provenance import code_of, legacy_code_of, module_name

# The values that a run records for its own options if they are not given.
RUN_DEFAULTS: Mapping[str, Any] = {"precision": "float32", "clip_norm": None, "num_seeds": 1}

IN_MEMORY = "experiment"
"""The name of an experiment that was not made by a function, such as one in a notebook."""

Change = Callable[[Experiment], Experiment]


@dataclasses.dataclass(frozen=True)
class Definition:
    """The function of an experiment, and its options.

    Attributes:
      fn: the function that returns the experiment. Its keyword arguments are the options.
      options: the options of the function. An option that is left out has its default.
      name: the name of the experiment, such as `experiments.mnist_cnn`. Default: the module of the function.
    """

    fn: Callable[..., Experiment]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str | None = None
    _facts: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    _base: "Definition | None" = dataclasses.field(default=None, repr=False)
    _change: Change | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.name is None:
            object.__setattr__(self, "name", module_name(self.fn))

    @classmethod
    def of(cls, experiment: "Experiment | Definition") -> "Definition":
        """Returns the definition of an existing experiment, such as one that is made in a notebook."""
        if isinstance(experiment, Definition):
            return experiment
        if not isinstance(experiment, Experiment):
            raise UserError(
                f"{str(experiment)[:80]} is not an Experiment; pass an Experiment, or Definition(function, "
                "options)"
            )

        def the_experiment() -> Experiment:
            return experiment

        return cls(the_experiment, {}, IN_MEMORY)

    def changed(self, facts: Mapping[str, Any], change: Change | None = None) -> "Definition":
        """Returns the definition of the same experiment with a change.

        Args:
          facts: what run.json records about the change beside the options, such as `{"fold": 2}`.
          change: returns the changed experiment for the experiment that the function returns.
        """
        return dataclasses.replace(self, _facts={**self._facts, **facts}, _base=self, _change=change)

    def build(self) -> Experiment:
        """Returns the experiment. Every call returns the same object, so its data are loaded once.

        Raises:
          UserError: the function does not return an Experiment.
        """
        if "_experiment" not in self.__dict__:
            object.__setattr__(self, "_experiment", self._build())
        return self.__dict__["_experiment"]

    def _build(self) -> Experiment:
        if self._base is not None:
            experiment = self._base.build()
            return experiment if self._change is None else self._change(experiment)
        experiment = self.fn(**self.options)
        if not isinstance(experiment, Experiment):
            raise UserError(
                f"{self.name}: experiment() returned {str(experiment)[:80]!r}; it must return an Experiment"
            )
        return experiment

    @property
    def recorded(self) -> dict[str, Any]:
        """The options as run.json records them, including defaults and changes."""
        return as_recorded({**self.defaults, **self.options, **self._facts})

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the options."""
        parameters = inspect.signature(self.fn).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    @property
    def code(self) -> str:
        """The digest of the code in the file of the function; empty if no function made the experiment."""
        return "" if self.name == IN_MEMORY else code_of(self.fn)

    @property
    def legacy_code(self) -> str:
        """The digest of the code that runs of older versions recorded."""
        return "" if self.name == IN_MEMORY else legacy_code_of(self.fn)

    @property
    def stem(self) -> str:
        """The beginning of the names of the folders of its runs."""
        return re.sub(r"\W+", "-", (self.name or "").rpartition(".")[2])
