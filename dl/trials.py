"""The trials of a sweep: each a run, on its own or as a member of one program; what has finished stays."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dl.command import code_of, module_name
from dl.console import Console
from dl.data.splits import ChangedSplits
from dl.errors import UserError
from dl.experiment import Experiment
from dl.likeness import fingerprint, metric_names
from dl.log import finite
from dl.loop import train
from dl.members import Members
from dl.options import Options
from dl.run import Run, as_recorded, read_json, write_json
from dl.search import Point, Space
from dl.selection import FINAL_SPLIT, KeepBest, look_up

Row = dict[str, Any]


class Trials:
    """The trials of a sweep, in their order; one that is recorded is not repeated.

    Attributes:
      folder: of the sweep.
      rows: of all trials so far: `trial`, `options`, `value` of the metric (None if it failed), `error`,
        `folder`, and which `member` of the run there it is, where that has several.
      header: what sweep.json says beside the trials.
      notice: of the data; known after `check_metric`.
      defaults: of the experiment's options.
    """

    def __init__(
        self,
        experiment_fn: Callable[..., Experiment],
        fixed: Options,
        rule: KeepBest,
        folder: Path,
        mesh: Mesh,
        together: int,
        resume: str,
    ):
        self.folder = folder
        self.rows: list[Row] = []
        self.header: dict[str, Any] = {}
        self.notice: str | None = None
        parameters = inspect.signature(experiment_fn).parameters.values()
        self.defaults = {parameter.name: parameter.default for parameter in parameters}
        self._experiment_fn = experiment_fn
        self._fixed = fixed
        self._rule = rule
        self._mesh = mesh
        self._together = together
        self._resume = resume
        self._recorded: dict[int, Row] = {}

    def check_metric(self, space: Space) -> None:
        """Raises UserError before anything is trained for a metric that no trial would measure."""
        first = {name: dimension.at(0.0) for name, dimension in space.items()}
        try:
            experiment = self._experiment({**self._fixed, **first})
        except UserError:  # the trial itself will say it
            return
        self.notice = experiment.data.notice
        if self.notice:
            Console().box("NOT THE DATA YOU MAY EXPECT", self.notice)
        known = dict.fromkeys(metric_names(experiment), np.zeros(()))
        look_up(dict.fromkeys(experiment.data.evaluations, known), self._rule.split, self._rule.metric)

    def open(self, header: dict[str, Any]) -> None:
        """Makes the folder, or reads what it holds.

        Raises:
          UserError: it holds something else than this sweep.
        """
        path = self.folder / "sweep.json"
        self.header = as_recorded(header)
        try:
            if (there := read_json(path)) is not None:
                self._recorded = {row["trial"]: row for row in there.pop("trials")}
                for key in {**there, **self.header}:
                    if there.get(key) != self.header.get(key):
                        raise UserError(
                            f"workdir={self.folder} holds another sweep ({key}: {json.dumps(there.get(key))} "
                            f"there, {json.dumps(self.header.get(key))} here); use its options, or another "
                            "--workdir"
                        )
            elif self.folder.exists() and any(self.folder.iterdir()):
                raise UserError(
                    f"workdir={self.folder} is not empty and holds no sweep; choose another folder"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise UserError(
                f"workdir={self.folder} cannot be used ({error.strerror or error}); choose a folder that can "
                "be written"
            ) from error

    def run(self, points: Sequence[Point], may_share: bool = False) -> list[Row]:
        """Trains what is not recorded yet; returns a row for each point, in their order."""
        start = len(self.rows)
        rows = []
        for k, point in enumerate(points, start):
            row: Row = {"trial": k, "options": as_recorded(point)}
            recorded = self._recorded.get(k, row)
            if recorded["options"] != row["options"]:
                raise UserError(
                    f"workdir={self.folder} holds another sweep (trial {k}: {recorded['options']} there, "
                    f"{row['options']} here), proposed by another version of a library; use another --workdir"
                )
            rows.append(recorded)
        self.rows += rows
        options = [{**self._fixed, **point} for point in points]
        if may_share and self._together > 1 and any("value" not in row for row in rows):
            for group in self._groups(points, options):
                left = [k for k in group if "value" not in rows[k]]
                # Where one of them had to be trained alone, so must the rest.
                if len(left) > 1 and all("member" in rows[k] for k in group if k not in left):
                    self._train_together([options[k] for k in left], [rows[k] for k in left])
        for row, own in zip(rows, options, strict=True):
            if "value" not in row:
                self._train_alone(own, row)
        return rows

    def _groups(self, points: Sequence[Point], options: Sequence[Options]) -> list[list[int]]:
        """Returns which trials can be members of one program."""
        candidates: dict[str, list[int]] = {}
        for k, point in enumerate(points):
            rest = {name: value for name, value in point.items() if not _may_vary(name, value)}
            candidates.setdefault(json.dumps(rest, default=str), []).append(k)
        groups: dict[str, list[int]] = {}
        for k in (k for group in candidates.values() if len(group) > 1 for k in group):
            try:
                experiment = self._experiment(options[k])
                kind = fingerprint(experiment)
            except UserError:  # the trial itself will say it
                continue
            # Together they would stop only when the last one has reached its target.
            if (
                kind
                and experiment.target is None
                and experiment.seed == options[k].get("seed", experiment.seed)
            ):
                groups.setdefault(kind, []).append(k)
        size = self._together
        chunks = [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]
        return [chunk for chunk in chunks if len(chunk) > 1]

    def _train_together(self, options: Sequence[Options], rows: Sequence[Row]) -> None:
        """Trains trials as members of one program; does nothing where that cannot be."""
        first = options[0]
        numbers = [name for name in rows[0]["options"] if isinstance(first[name], float)]
        varied = [name for name in numbers if any(own[name] != first[name] for own in options)]
        base = self._experiment(first)
        members = Members(
            tuple(own.get("seed", base.seed) for own in options),
            {name: tuple(own[name] for own in options) for name in varied},
            (lambda own: self._experiment_fn(**{**first, **own}).tx) if varied else None,
        )
        folder = f"trial-{rows[0]['trial']:03d}-and-{len(rows) - 1}-more"
        recorded = {**first, "members": [members.describe(k) for k in range(len(members))]}
        try:
            result = self._train(base, folder, recorded, members)
        except UserError:  # then each trial says for itself what is wrong
            return
        for k, row in enumerate(rows):
            row |= {"folder": folder, "member": k}
            self._finish(row, result["members"][k]["metrics"])
        self._report(rows)

    def _train_alone(self, options: Options, row: Row) -> None:
        folder = f"trial-{row['trial']:03d}"
        row["folder"] = folder
        try:
            result = self._train(self._experiment(options), folder, options, None)
        except UserError as error:
            row |= {"value": None, "error": str(error)}
        else:
            self._finish(row, result["metrics"])
        self._report([row])

    def _train(
        self, experiment: Experiment, folder: str, options: Options, members: Members | None
    ) -> dict[str, Any]:
        name, code = module_name(self._experiment_fn), code_of(self._experiment_fn)
        run = Run(self.folder / folder, name, options, code, self._resume)
        return train(experiment, run, self._mesh, members=members, console=Console(is_quiet=True))

    def _experiment(self, options: Options) -> Experiment:
        experiment = self._experiment_fn(**options)
        return dataclasses.replace(experiment, data=ChangedSplits(experiment.data, without=[FINAL_SPLIT]))

    def _finish(self, row: Row, metrics: dict[str, Any]) -> None:
        value = look_up(metrics, self._rule.split, self._rule.metric).item()
        row["value"] = finite(value)  # of a run that diverged null already
        row["metrics"] = metrics
        if row["value"] is None:
            row["error"] = f"{self._rule.split} {self._rule.metric} is no number"

    def _report(self, rows: Sequence[Row]) -> None:
        self._write()
        for row in rows:
            said = row["error"] if row["value"] is None else f"{row['value']:.6g}"
            words = " ".join(f"{name}={value}" for name, value in row["options"].items())
            print(f"trial {row['trial']}: {words}: {said}", flush=True)

    def _write(self) -> None:
        known = self._recorded | {row["trial"]: row for row in self.rows if "value" in row}
        trials = [finite(known[k]) for k in sorted(known)]
        write_json(self.folder / "sweep.json", {**self.header, "trials": trials})


def _may_vary(name: str, value: Any) -> bool:
    return isinstance(value, float) or name == "seed"
