"""The trials of a sweep. Each is a separate run, or a member of a population in one program.

A trial that diverged, or failed because of its options, is recorded as a row. A failure of its environment
(missing data, a full disk, too little memory) ends the sweep, and the next start repeats the trial.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dl.errors import Diverged, UserError
from dl.option_types import Options
from dl.runs.console import Console
from dl.runs.definition import Definition
from dl.runs.log import finite
from dl.runs.provenance import legacy_code_of
from dl.stopping import look_up
from dl.studies.fingerprint import fingerprint
from dl.studies.folder import Study, damaged, is_same, plain
from dl.studies.probe import Probe, without_test
from dl.studies.runs import StudyRuns
from dl.studies.search import Point
from dl.studies.trial_errors import is_of_surroundings, one_line
from dl.training.population import Population
from dl.training.signals import Stopped

Row = dict[str, Any]


class Trials:
    """The trials of a sweep in their order. Recorded trials are not repeated.

    Attributes:
      folder: the folder of the sweep.
      rows: one for each trial so far: `trial`, `options`, `value` of the metric (None if it failed), `error`,
        whether it `has_diverged`, `folder`, and which `member` of the run there it is, where that has
        several.
      points: the options of each trial, as the experiment takes them.
      header: the content of sweep.json beside the trials.
      defect: the first error that is not a UserError.
    """

    def __init__(
        self,
        runs: StudyRuns,
        fixed: Options,
        probe: Probe,
        header: Mapping[str, Any],
        together: int,
        console: Console,
    ):
        """Reads the trials in the folder.

        Args:
          runs: the object that trains the runs.
          fixed: the options of all trials.
          probe: an experiment of the space that can be built.
          header: the content of the record beside the trials.
          together: the largest number of trials in one program.
          console: where a line for each trial is printed.

        Raises:
          UserError: the folder does not hold this sweep, or its record is damaged.
        """
        self.folder = runs.study.folder
        self.rows: list[Row] = []
        self.points: list[Point] = []
        self.header = plain(header)
        self.defect: Exception | None = None
        self._runs = runs
        self._fixed = fixed
        self._probe = probe
        self._together = together
        self._console = console
        there = runs.study.resume(self.header, {"code": legacy_code_of(runs.experiment_fn)})
        self._recorded = {} if there is None else _rows_of(there, runs.study)
        self._write()

    def run(self, points: Sequence[Point], are_independent: bool = False) -> list[Row]:
        """Trains the trials that are not recorded; returns a row for each point, in the same order.

        Args:
          points: the searched options of each trial.
          are_independent: whether no later trial depends on these trials. Then they may share a program, and
            a failed trial is repeated unless it diverged.

        Raises:
          UserError: the folder holds other trials, or a trial failed because of its environment.
        """
        start = len(self.rows)
        rows = []
        for k, point in enumerate(points, start):
            row: Row = {"trial": k, "options": plain(point)}
            recorded = self._recorded.get(k, row)
            if not is_same(recorded["options"], row["options"]):
                raise UserError(
                    f"workdir={self.folder} holds another sweep (trial {k}: {recorded['options']} there, "
                    f"{row['options']} here), proposed by another version of a library; use another folder"
                )
            is_open = recorded.get("value") is None and not {"has_diverged", "metrics"} & recorded.keys()
            rows.append(row if are_independent and is_open else recorded)
        self.rows += rows
        self.points += points
        options = [{**self._fixed, **point} for point in points]
        if are_independent and self._together > 1 and any("value" not in row for row in rows):
            for group in self._groups(points, options):
                left = [k for k in group if "value" not in rows[k]]
                # If one of them was trained alone, the others are trained alone too.
                if len(left) > 1 and all("member" in rows[k] for k in group if k not in left):
                    self._train_together([options[k] for k in left], [rows[k] for k in left])
        for row, own in zip(rows, options, strict=True):
            if "value" not in row:
                self._train_alone(own, row)
        return rows

    def options(self, trial: int) -> Options:
        """Returns all options of a trial, as the experiment takes them."""
        return {**self._fixed, **self.points[trial]}

    def _groups(self, points: Sequence[Point], options: Sequence[Options]) -> list[list[int]]:
        """Returns which trials can share one program."""
        candidates: dict[str, list[int]] = {}
        for k, point in enumerate(points):
            rest = {name: value for name, value in point.items() if not _may_vary(name, value)}
            candidates.setdefault(json.dumps(rest, default=str), []).append(k)
        groups: dict[str, list[int]] = {}
        for k in (k for group in candidates.values() if len(group) > 1 for k in group):
            try:
                experiment = self._define(options[k]).build()
                kind = fingerprint(experiment)
            except Exception:  # the trial raises the error again
                continue
            # Together they would stop only when the last of them has reached its target.
            if (
                kind
                and experiment.stop_at is None
                and experiment.seed == options[k].get("seed", experiment.seed)
            ):
                groups.setdefault(kind, []).append(k)
        size = self._together
        chunks = [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]
        return [chunk for chunk in chunks if len(chunk) > 1]

    def _train_together(self, options: Sequence[Options], rows: Sequence[Row]) -> None:
        """Trains trials as a population in one program, if that is possible."""
        first = options[0]
        numbers = [name for name in rows[0]["options"] if isinstance(first[name], float)]
        varied = [name for name in numbers if any(not is_same(own[name], first[name]) for own in options)]
        definition = self._define(first)
        base = definition.build()
        population = Population(
            tuple(own.get("seed", base.seed) for own in options),
            {name: tuple(own[name] for own in options) for name in varied},
            (lambda own: self._runs.experiment_fn(**{**first, **own}).tx) if varied else None,
        )
        folder = f"trial-{rows[0]['trial']:03d}-and-{len(rows) - 1}-more"
        definition = definition.changed({"members": [population.describe(k) for k in range(len(population))]})
        try:
            result = self._runs.train(folder, definition, population)
        except Stopped:
            raise
        except Exception:  # then each trial is trained alone, where it may fit into memory or show its error
            return
        for k, row in enumerate(rows):
            row |= {"folder": folder, "member": k}
            self._finish(row, result["members"][k]["metrics"])
        self._report(rows)

    def _train_alone(self, options: Options, row: Row) -> None:
        folder = f"trial-{row['trial']:03d}"
        row["folder"] = folder
        is_built = False
        try:
            definition = self._define(options)
            definition.build()
            is_built = True
            result = self._runs.train(folder, definition)
        except Stopped:
            raise
        except Exception as error:
            self._refuse_surroundings(error, is_built, row["trial"])
            row |= {"value": None, "error": one_line(error)}
            if isinstance(error, Diverged):
                row["has_diverged"] = True
            elif not isinstance(error, UserError):
                self.defect = self.defect or error
        else:
            self._finish(row, result["metrics"])
        self._report([row])

    def _refuse_surroundings(self, error: Exception, is_built: bool, trial: int) -> None:
        """Raises UserError if the environment of the trial caused the error."""
        # The run is damaged, or belongs to another study.
        is_of_folder = isinstance(error, UserError) and str(self.folder) in str(error)
        if not is_of_folder and not is_of_surroundings(error, is_built):
            if isinstance(error, Diverged):
                return
            try:
                self._probe.check()
                return
            except UserError as also:  # options that worked before fail now
                error = also
        kind = type(error) if isinstance(error, UserError) else UserError
        raise kind(
            f"trial {trial} cannot run now ({one_line(error)}); solve this problem, then run the same "
            "command "
            "again"
        ) from error

    def _define(self, options: Options) -> Definition:
        return without_test(self._runs.experiment_fn, options)

    def _finish(self, row: Row, metrics: dict[str, Any]) -> None:
        rule = self._probe.rule
        value = look_up(metrics, rule.split, rule.metric).item()
        row["value"] = finite(value)  # null for a run that has diverged
        row["metrics"] = finite(metrics)
        if row["value"] is None:
            row["error"] = f"{rule.split} {rule.metric} is not a finite number"

    def _report(self, rows: Sequence[Row]) -> None:
        self._write()
        for row in rows:
            said = row["error"] if row["value"] is None else f"{row['value']:.6g}"
            words = " ".join(f"{name}={value}" for name, value in row["options"].items())
            self._console.line(f"trial {row['trial']}: {words}: {said}")

    def _write(self) -> None:
        known = self._recorded | {row["trial"]: row for row in self.rows if "value" in row}
        self._runs.study.write({**self.header, "trials": [known[k] for k in sorted(known)]})


def _rows_of(record: Mapping[str, Any], study: Study) -> dict[int, Row]:
    """Returns the rows of a record by their numbers.

    Raises:
      UserError: the rows are not valid.
    """
    kinds = {"trial": int, "options": dict, "folder": str}
    rows = record.get("trials")
    if not isinstance(rows, list):
        raise damaged(study.path, "it does not hold trials")
    for row in rows:
        if not isinstance(row, dict) or any(not isinstance(row.get(n), kind) for n, kind in kinds.items()):
            raise damaged(study.path, "a trial lacks its number, its options or its folder")
        value = row.get("value")
        is_number = isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number and not (value is None and isinstance(row.get("error"), str)):
            raise damaged(study.path, f"trial {row['trial']} has neither a value nor an error")
    if len({row["trial"] for row in rows}) < len(rows):
        raise damaged(study.path, "it holds a trial twice")
    return {row["trial"]: row for row in rows}


def _may_vary(name: str, value: Any) -> bool:
    return isinstance(value, float) or name == "seed"
