"""A probe of a sweep: an experiment of its space that can be built, which shows what trials measure."""

import dataclasses
from collections.abc import Callable

import numpy as np

from dl.data.splits import ChangedSplits
from dl.experiment import Experiment
from dl.option_types import Options
from dl.runs.definition import Definition
from dl.stopping import FINAL_SPLIT, KeepBest, look_up
from dl.studies.fingerprint import direction_of, metric_directions
from dl.studies.search import Space

_PLACES = (0.0, 0.999, 0.5, 0.25, 0.75)  # positions in each dimension at which the probe is tried


class Probe:
    """An experiment of the space that can be built.

    It shows what the trials measure, and after an error whether an experiment can still be built.

    Attributes:
      rule: the rule that says which value is best.
      notice: what the user must know about the data.
    """

    def __init__(self, build: Callable[[Options], Experiment], fixed: Options, space: Space, rule: KeepBest):
        """Builds an experiment at several positions of the space, or with its defaults.

        It raises a UserError if none can be built, or if the trials would not measure the metric.
        """
        self._build = build
        points = [{name: dimension.at(place) for name, dimension in space.items()} for place in _PLACES]
        failure: Exception | None = None
        for own in (*points, {}):
            self._options = {**fixed, **own}
            try:
                experiment = build(self._options)
                directions = metric_directions(experiment)
                break
            except Exception as error:  # these options may be invalid
                failure = failure or error
        else:
            assert failure is not None
            raise failure
        self.notice = experiment.data.notice
        known = dict.fromkeys(directions, np.zeros(()))
        look_up(dict.fromkeys(experiment.data.evaluations, known), rule.split, rule.metric)
        self.rule = dataclasses.replace(rule, mode=direction_of(rule.metric, directions, rule.mode))

    def check(self) -> None:
        """Raises an error if the probe can no longer be built: then the trial did not cause its error."""
        _ = self._build(self._options).data.identity


def without_test(experiment_fn: Callable[..., Experiment], options: Options) -> Definition:
    """Returns the definition of an experiment without a test split."""
    return Definition(experiment_fn, options).changed({}, hide_test)


def hide_test(experiment: Experiment) -> Experiment:
    """Returns an experiment without its test split."""
    return dataclasses.replace(experiment, data=ChangedSplits(experiment.data, without=[FINAL_SPLIT]))
