"""Workers that share a sweep: each trial once, the table of a single process, trials that are given up."""

import contextlib
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dl.errors import StorageError, UserError
from dl.runs.console import Console
from dl.runs.find import find_experiment
from dl.runs.folder import RunFolder
from dl.studies.search import Interval
from dl.studies.sweep import sweep
from dl.system.claims import Claims
from dl.training.population import Population
from dl.training.signals import Stopped, StopSignals
from tests.helpers import PLANE, replace_training, train_in, without_timing

pytestmark = pytest.mark.slow  # it waits for leases

SPACE = {"learning_rate": Interval(1e-3, 1.0, True), "batch_size": [8, 16]}
METHODS = {
    "random": {"num_trials": 9, "together": 2},
    "grid": {"method": "grid"},
    "halving": {"method": "halving", "num_trials": 9},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("experiments") / "plane.py"
    file.write_text(PLANE)
    return str(file)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


class Training:
    """Takes the place of the training: a loss for each run, and the names of the runs in their order."""

    def __init__(self):
        self.names = []
        self.before = lambda name, console: None

    def __call__(self, experiment, run, mesh, population, console):
        self.before(run.folder.name, console)
        self.names.append(run.folder.name)
        options = run.definition.options
        if isinstance(population, Population):
            hyper = population.options["learning_rate"]
            return {"members": [{"metrics": metrics(rate, options)} for rate in hyper]}
        return {"metrics": metrics(options["learning_rate"], options)}


def metrics(rate, options):
    return {"validation": {"loss": abs(rate - 0.03) + options["batch_size"] / options["num_epochs"]}}


@pytest.fixture
def training(monkeypatch):
    training = Training()
    replace_training(monkeypatch, training)
    return training


@pytest.fixture
def work(path, mesh1, folder):
    """Runs a sweep as a worker, or alone; returns it."""

    def run(folder=folder, is_worker=True, space=SPACE, lease=30.0, **how):
        how = {
            "mesh": mesh1,
            "console": Console(is_quiet=True),
            "is_worker": is_worker,
            "lease": lease,
            **how,
        }
        return sweep(find_experiment(path), space, {"num_epochs": 9}, folder=folder, **how)

    return run


def trials_of(folder):
    return json.loads((folder / "sweep.json").read_text())["trials"]


@pytest.mark.parametrize("how", METHODS.values(), ids=list(METHODS))
def test_workers_make_the_sweep_of_one_process(work, training, tmp_path, folder, how):
    space = {**SPACE, "learning_rate": [0.01, 0.1, 1.0]} if how.get("method") == "grid" else SPACE
    found = work(tmp_path / "alone", is_worker=False, space=space, **how)
    alone, training.names = training.names, []
    training.before = lambda name, console: time.sleep(0.02)
    with ThreadPoolExecutor(3) as pool:
        shared = list(pool.map(lambda _: work(space=space, **how), range(3)))
    assert sorted(training.names) == sorted(alone)
    assert trials_of(folder) == trials_of(tmp_path / "alone")
    for one in shared:
        assert one.rows == found.rows
        assert one.best_options == found.best_options
    for name in ("sweep.md", "sweep.png"):
        assert (folder / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    training.names = []
    assert work(space=space, **how).rows == found.rows  # a worker that comes late
    assert work(is_worker=False, space=space, **how).rows == found.rows
    assert not training.names
    if how.get("method") == "halving":
        budgets = [row["options"]["num_epochs"] for row in trials_of(folder)]
        assert budgets == [1] * 9 + [3] * 3 + [9]


def test_a_round_of_halving_waits_for_the_round_before(work, training):
    numbers = []
    running = threading.Barrier(3, timeout=30)

    def wait(name, console):
        number = int(name.removeprefix("trial-"))
        if number < 3:
            running.wait()  # three workers train the first round at the same time
        numbers.append(number)
        time.sleep(0.1 * (number == 2))

    training.before = wait
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: work(method="halving", num_trials=3), range(3)))
    assert numbers[3:] == [3]


def test_tpe_proposes_from_what_has_finished(work, training, folder):
    pytest.importorskip("optuna", reason="needs the extra: search")
    how = {"method": "tpe", "num_trials": 12}
    with ThreadPoolExecutor(2) as pool:
        shared = list(pool.map(lambda _: work(**how), range(2)))
    assert sorted(training.names) == [f"trial-{k:03d}" for k in range(12)]
    assert shared[0].rows == shared[1].rows
    assert len({row["options"]["learning_rate"] for row in trials_of(folder)}) == 12
    assert shared[0].best_options["batch_size"] in (8, 16)
    assert work(**how).rows == shared[0].rows


def test_tpe_keeps_the_point_of_a_trial_that_is_given_up(work, training, folder):
    pytest.importorskip("optuna", reason="needs the extra: search")
    training.before = lambda name, console: fail()
    with pytest.raises(StorageError):
        work(method="tpe", num_trials=3)
    point = Claims(folder / "claims").note("trial-000", "point")
    training.before = lambda name, console: None
    work(method="tpe", num_trials=3)
    assert trials_of(folder)[0]["options"] == point


def fail():
    raise StorageError("no space")


@pytest.mark.parametrize("together", [1, 2])
def test_a_trial_that_failed_is_repeated_by_a_single_process_only(work, training, folder, together):
    def fail_at_first(name, console):
        if name not in failed and name != "trial-000":
            failed.append(name)
            raise UserError("these options are wrong")

    failed, training.before = [], fail_at_first
    how = {"num_trials": 2, "together": together, "space": {"learning_rate": SPACE["learning_rate"]}}
    for is_worker, names in ((True, ["trial-000"]), (True, []), (False, ["trial-001"]), (True, [])):
        training.names = []
        work(is_worker=is_worker, **how)
        assert training.names == names
    assert all(row["value"] is not None for row in trials_of(folder))


def test_an_error_of_the_environment_gives_the_trial_back(work, training, folder):
    training.before = lambda name, console: fail()
    with pytest.raises(StorageError, match="trial 0 cannot run now"):
        work(num_trials=2, together=1)
    assert not Claims(folder / "claims").holders()
    training.before = lambda name, console: None
    work(num_trials=2, together=1)
    assert training.names == ["trial-000", "trial-001"]


def in_the_loop(name, console):
    """A signal that arrives when a run has just ended."""
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("send", [lambda name, console: os.kill(os.getpid(), signal.SIGTERM), in_the_loop])
def test_a_worker_that_is_stopped_gives_its_trial_back(dl, path, training, folder, send):
    words = [
        "sweep",
        path,
        "learning_rate=0.1,0.2",
        "--method",
        "grid",
        "--together",
        "1",
        "--mesh",
        "data=1",
    ]
    words += ["--worker", "--workdir", str(folder)]
    training.before = send
    status, out, err = dl(*words)
    assert (status, "trial " in out) == (128 + signal.SIGTERM, False)
    assert "stopped by SIGTERM; to resume: python -m dl sweep" in err
    assert "--worker" in err
    assert not Claims(folder / "claims").holders()
    training.before, training.names = lambda name, console: None, []
    assert dl(*words)[0] == 0
    assert training.names == ["trial-000", "trial-001"]


def test_the_trial_of_a_dead_worker_is_taken_over_when_no_other_is_left(work, training, folder):
    Claims(folder / "claims", expiry=1000.0).claim("trial-000")
    work(num_trials=3, together=1, lease=0.5)
    assert training.names == ["trial-001", "trial-002", "trial-000"]


def test_a_worker_that_lost_its_trial_leaves_it_and_goes_on(work, training, folder):
    def lose(name, console):
        if name == "trial-000":
            other = Claims(folder / "claims", expiry=0.0)
            assert other.claim(name) is None
            row = {"trial": 0, "options": options, "folder": name, "value": 7.0, "metrics": {}}
            other.claim(name).finish([row])
            while True:  # the loop, which finds it out
                console.progress(1, "", {})
                time.sleep(0.01)

    options = {"learning_rate": 0.5}
    training.before = lose
    space = {"learning_rate": [0.5, 0.6]}
    found = work(method="grid", together=1, space=space, lease=1.0)
    assert training.names == ["trial-001"]
    assert {row["trial"]: row["value"] for row in found.rows}[0] == 7.0


@pytest.mark.parametrize("together", [1, 2])
def test_an_error_after_the_trial_was_lost_is_not_its_result(work, training, folder, together):
    def lose(name, console):
        if not other:
            other.append(Claims(folder / "claims", expiry=0.0))
            assert other[0].claim(name) is None
            other[0].claim(name).release()
            raise StorageError(f"{name} was removed or moved during the run")

    other = []
    training.before = lose
    work(num_trials=2, together=together, space={"learning_rate": SPACE["learning_rate"]})
    assert training.names == (["trial-000", "trial-001"] if together == 1 else ["trial-000-and-1-more"])
    assert all(row["value"] is not None for row in trials_of(folder))


def test_a_process_whose_run_was_seized_saves_and_finishes_nothing(tmp_path, mesh1):
    class Seizing(Console):
        def __init__(self):
            super().__init__(is_quiet=True)
            self.is_live = True

        def start(self, num_steps):
            pass

        def progress(self, step, description, figures):
            if step == 6:
                run.seize()
                before.append(run.metrics_path.read_bytes())

    run, before = RunFolder(tmp_path / "run"), []
    with pytest.raises(StorageError, match="was removed or moved"):
        train_in(run.folder, mesh1, console=Seizing())
    assert run.result is None
    assert run.metrics_path.read_bytes() == before[0]
    assert not list((run.folder / "checkpoints").iterdir())
    train_in(run.folder, mesh1)
    train_in(tmp_path / "whole", mesh1)
    assert without_timing(run.folder) == without_timing(tmp_path / "whole")


def test_mistakes_are_one_line(dl, path, work, training, folder):
    words = ["sweep", path, "learning_rate=0.1,0.2", "--num-trials", "2", "--mesh", "data=1"]
    status, _, err = dl(*words, "--worker")
    assert (status, err) == (
        2,
        "error: a worker needs the folder that all workers share; give --workdir FOLDER\n",
    )
    words += ["--workdir", str(folder)]
    assert dl(*words, "--worker")[0] == 0
    with Claims(folder / "claims").claim("trial-009"):
        for more, message in (
            ([], "is shared by workers (process "),
            (
                ["--worker", "--num-trials", "3"],
                "has workers with other options (num_trials=2 there, 3 here): process",
            ),
            (["--worker", "--together", "1"], "(together=16 there, 1 here)"),
            (["--worker", "--lease", "5"], "(lease=60.0 there, 5.0 here)"),
            (["--worker", "--lease", "0"], "--lease 0.0 is out of range"),
            (["--worker", "--search-seed", "1"], "holds another sweep (search_seed: 0 there, 1 here)"),
        ):
            status, _, err = dl(*words, *more)
            assert (status, message in err, err.count("\n")) == (2, True, 1), err
    assert dl(*words, "--worker", "--num-trials", "3")[0] == 0


def test_a_single_process_and_workers_exclude_each_other(work, training, folder):
    def start_another(name, console):
        with pytest.raises(UserError, match="in use by another process|shared by workers"):
            work(is_worker=not is_worker, num_trials=2, together=1)

    training.before = start_another
    for is_worker in (True, False):
        work(is_worker=is_worker, folder=folder, num_trials=2 if is_worker else 3, together=1)
    assert training.names == ["trial-000", "trial-001", "trial-002"]


def test_a_signal_that_ended_nothing_is_passed_to_the_outer_context():
    with StopSignals() as outer:
        with StopSignals() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert (outer.received, inner.received) == (signal.SIGTERM, signal.SIGTERM)
    with StopSignals() as outer:
        with contextlib.suppress(Stopped), StopSignals() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            raise Stopped(inner.received, "stopped")
        assert (outer.received, inner.received) == (None, signal.SIGTERM)
