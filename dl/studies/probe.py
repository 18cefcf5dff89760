"""An experiment of a sweep's space that can be built: what it measures, and later whose fault an error is."""

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

_PLACES = (0.0, 0.999, 0.5, 0.25, 0.75)  # in each dimension, where an experiment may be built


class Probe:
    """An experiment of the space that can be built: what it measures, and whether it can still be built.

    Attributes:
      rule: what is best, with its direction.
      notice: of the data.
    """

    def __init__(self, build: Callable[[Options], Experiment], fixed: Options, space: Space, rule: KeepBest):
        """Raises UserError before anything is trained for a metric that no trial would measure.

        So it does where nothing can be built, neither at several places of the space nor by default.
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
            except Exception as error:  # of these options, perhaps
                failure = failure or error
        else:
            assert failure is not None
            raise failure
        self.notice = experiment.data.notice
        known = dict.fromkeys(directions, np.zeros(()))
        look_up(dict.fromkeys(experiment.data.evaluations, known), rule.split, rule.metric)
        self.rule = dataclasses.replace(rule, mode=direction_of(rule.metric, directions, rule.mode))

    def check(self) -> None:
        """Raises an error if what could be built before cannot now: then no trial is to blame."""
        _ = self._build(self._options).data.identity


def without_test(experiment_fn: Callable[..., Experiment], options: Options) -> Definition:
    """Returns the definition of an experiment whose test split nobody can read."""
    return Definition(experiment_fn, options).changed({}, hide_test)


def hide_test(experiment: Experiment) -> Experiment:
    """Returns an experiment whose test split nobody can read."""
    return dataclasses.replace(experiment, data=ChangedSplits(experiment.data, without=[FINAL_SPLIT]))
