"""The trials of a sweep. Each is a separate run, or a member of a population in one program.

A trial that diverged, or failed because of its options, is recorded as a row. A failure of its environment
(missing data, a full disk, too little memory) ends the sweep, and the next start repeats the trial.

The trials that share a program, and each trial alone, are a piece. A single process carries out the pieces
one after another, and several workers share them, see `dl.studies.workers`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from dl.errors import Diverged, UserError
from dl.option_types import Options
from dl.runs.console import Console
from dl.runs.definition import Definition
from dl.runs.log import finite
from dl.runs.provenance import legacy_code_of
from dl.stopping import look_up
from dl.studies.folder import is_same, plain
from dl.studies.probe import Probe, without_test
from dl.studies.programs import groups_of, in_one_program
from dl.studies.rows import Proposals, Row, name_of, rows_of
from dl.studies.runs import StudyRuns
from dl.studies.search import Point
from dl.studies.trial_errors import is_of_surroundings, one_line
from dl.system.claims import ClaimLost
from dl.training.signals import Stopped

_POINT = "point"  # under which a worker notes the point of a trial
# The part of the record that is new when it is written again: so what is written grows with the number of
# trials, not with its square. What a kill loses is read again from the folders of the trials.
_NEW_PART = 1 / 16


class Trials:
    """The trials of a sweep in their order. Recorded trials are not repeated.

    Attributes:
      folder: the folder of the sweep.
      rows: one for each trial so far.
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
        self._num_written = self._num_unwritten = 0
        with self._writing():
            there = runs.study.resume(self.header, {"code": legacy_code_of(runs.experiment_fn)})
            self._recorded = {} if there is None else rows_of(there, runs.study)
            if there is None or runs.worker is None:
                self._write()

    def run(self, points: Sequence[Point], are_independent: bool = False) -> list[Row]:
        """Trains the trials that are not recorded; returns a row for each point, in the same order.

        Args:
          points: the searched options of each trial.
          are_independent: whether no later trial depends on these trials. Then they may share a program, and
            a process without other workers repeats a failed trial unless it diverged.

        Raises:
          UserError: the folder holds other trials, or a trial failed because of its environment.
        """
        rows = []
        for k, point in enumerate(points, len(self.rows)):
            row: Row = {"trial": k, "options": plain(point)}
            recorded = self._recorded.get(k, row)
            self._check_options(k, recorded["options"], row["options"])
            is_final = recorded.get("value") is not None or {"has_diverged", "metrics"} & recorded.keys()
            is_repeated = are_independent and self._runs.worker is None and not is_final
            rows.append(row if is_repeated else recorded)
        self.rows += rows
        self.points += points
        pieces = self._pieces(rows, are_independent)
        self._carry_out({name_of(piece): partial(self._train, piece) for piece in pieces})
        return rows

    def run_as_proposed(self, num_trials: int, proposals: Proposals) -> None:
        """Trains trials together with other workers. The worker that claims a trial proposes its point.

        Args:
          num_trials: the number of trials.
          proposals: proposes a point from the finished trials.

        Raises:
          UserError: a trial failed because of its environment.
        """
        self.rows = [self._recorded.get(k, {"trial": k}) for k in range(num_trials)]
        self.points = [{} for _ in range(num_trials)]
        left = [row for row in self.rows if "value" not in row]
        self._carry_out({name_of([row]): partial(self._propose, row, proposals) for row in left})
        self.points = [proposals.point(row["options"]) for row in self.rows]

    def options(self, trial: int) -> Options:
        """Returns all options of a trial, as the experiment takes them."""
        return {**self._fixed, **self.points[trial]}

    @contextlib.contextmanager
    def concluding(self) -> Iterator[None]:
        """A context at the end of the sweep in which no other worker writes into its folder."""
        with self._writing():
            self._write()
            yield

    def _writing(self) -> contextlib.AbstractContextManager[Any]:
        worker = self._runs.worker
        return contextlib.nullcontext() if worker is None else worker.writing()

    def _carry_out(self, pieces: Mapping[str, Callable[[], list[Row]]]) -> None:
        """Trains the trials of each piece, alone or together with the other workers."""
        if self._runs.worker is None:
            with contextlib.ExitStack() as stack:
                stack.callback(self._write_rest)
                for train in pieces.values():
                    train()
                stack.pop_all()  # the rest is written with later trials, or at the end
            return
        for rows in self._runs.worker.carry_out(pieces).values():
            for row in rows:
                own = self.rows[row["trial"]]
                self._check_options(row["trial"], row["options"], own.get("options", row["options"]))
                own.clear()
                own.update(row)

    def _check_options(self, trial: int, there: Any, here: Any) -> None:
        if not is_same(there, here):
            raise UserError(
                f"workdir={self.folder} holds another sweep (trial {trial}: {there} there, {here} here), "
                "proposed by another version of a library; use another folder"
            )

    def _propose(self, row: Row, proposals: Proposals) -> list[Row]:
        """Trains a trial with a new point, or with the point that a worker before has noted."""
        worker = self._runs.worker
        assert worker is not None
        assert worker.claim is not None
        if (options := worker.claims.note(worker.claim.name, _POINT)) is None:
            finished = [row for row in self.rows if "value" in row]
            for name in (name_of([row]) for row in self.rows if "value" not in row):
                finished += worker.claims.result(name) if worker.claims.is_done(name) else []
            options = plain(proposals.propose(row["trial"], finished))
            worker.claim.note(_POINT, options)
        row["options"] = options
        self.points[row["trial"]] = proposals.point(options)
        return self._train([row])

    def _pieces(self, rows: Sequence[Row], are_independent: bool) -> list[list[Row]]:
        """Returns the trials that are not recorded: those that may share a program, then each alone."""
        pieces = []
        if are_independent and self._together > 1 and any("value" not in row for row in rows):
            points = {row["trial"]: self.points[row["trial"]] for row in rows}
            for group in groups_of(points, lambda k: self._define(self.options(k)), self._together):
                grouped = [self.rows[trial] for trial in group]
                left = [row for row in grouped if "value" not in row]
                # If one of them was trained alone, the others are trained alone too.
                if len(left) > 1 and all("member" in row for row in grouped if "value" in row):
                    pieces.append(left)
        shared = {row["trial"] for piece in pieces for row in piece}
        return pieces + [[row] for row in rows if "value" not in row and row["trial"] not in shared]

    def _train(self, rows: list[Row]) -> list[Row]:
        """Trains trials, in one program if that is possible. Returns their complete rows."""
        if len(rows) == 1 or not self._train_together(rows):
            for row in rows:
                self._train_alone(row)
        return rows

    def _train_together(self, rows: Sequence[Row]) -> bool:
        """Trains trials as a population in one program. Returns whether that was possible."""
        options = [self.options(row["trial"]) for row in rows]
        definition, population = in_one_program(self._define, options, rows[0]["options"])
        folder = name_of(rows)
        try:
            result = self._runs.train(folder, definition, population)
        except (Stopped, ClaimLost):
            raise
        except Exception:  # then each trial is trained alone, where it may fit into memory or show its error
            self._check_claim()
            return False
        for k, row in enumerate(rows):
            row |= {"folder": folder, "member": k}
            self._finish(row, result["members"][k]["metrics"])
        self._report(rows)
        return True

    def _train_alone(self, row: Row) -> None:
        row["folder"] = name_of([row])
        is_built = False
        try:
            definition = self._define(self.options(row["trial"]))
            definition.build()
            is_built = True
            result = self._runs.train(row["folder"], definition)
        except (Stopped, ClaimLost):
            raise
        except Exception as error:
            self._check_claim()
            self._refuse_surroundings(error, is_built, row["trial"])
            row |= {"value": None, "error": one_line(error)}
            if isinstance(error, Diverged):
                row["has_diverged"] = True
            elif not isinstance(error, UserError):
                self.defect = self.defect or error
        else:
            self._finish(row, result["metrics"])
        self._report([row])

    def _check_claim(self) -> None:
        """Raises ClaimLost if another worker has taken over the trials, which explains any error."""
        if self._runs.worker is not None:
            self._runs.worker.check()

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
            "command again"
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
        self._num_unwritten += len(rows)
        is_due = self._num_unwritten >= _NEW_PART * self._num_written
        if is_due and self._runs.worker is None:  # else the worker that ends last writes all rows
            self._write()
        for row in rows:
            said = row["error"] if row["value"] is None else f"{row['value']:.6g}"
            words = " ".join(f"{name}={value}" for name, value in row["options"].items())
            self._console.line(f"trial {row['trial']}: {words}: {said}")

    def _write_rest(self) -> None:
        """Writes what is left after an error, which says more than an error of writing."""
        with contextlib.suppress(UserError):
            self._write()

    def _write(self) -> None:
        known = self._recorded | {row["trial"]: row for row in self.rows if "value" in row}
        self._runs.study.write({**self.header, "trials": [known[k] for k in sorted(known)]})
        self._num_written, self._num_unwritten = len(known), 0
