"""Kills the workers of a sweep at random, and says whether each trial was trained to its end exactly once.

    python -m benchmarks.sweep_workers [--short]

Four workers share 40 trials in one folder, and ten of them are killed by SIGKILL: half at a change in the
folder of the claims, half at a random time. A new worker takes the place of each. Afterwards the sweep is
compared with that of a single process: table, metrics, parameters, and the log of each run. One worker is
also stopped for longer than its lease by SIGSTOP, and must not harm the trial that it has lost. Exits with
status 1 if anything differs, is done twice, or is left behind.
"""

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LEASE = 6.0  # seconds
FINISHED = "finished.log"  # of a sweep's folder: a line for each run that was trained to its end


def main(is_short: bool) -> int:
    """Runs the campaign, prints what it found, and returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="dl-workers-") as name:
        place = Path(name)
        for variable, folder in (("TFDS_DATA_DIR", "data"), ("XDG_CACHE_HOME", "cache")):
            (place / folder).mkdir()
            os.environ[variable] = str(place / folder)
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(place / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        from benchmarks.faults.__main__ import import_all

        import_all()
        num_workers, num_trials, num_kills = (3, 8, 4) if is_short else (4, 40, 10)
        started = time.monotonic()
        alone = start(place / "alone", num_trials, is_worker=False)
        if status := status_of(alone, block=True):
            print((place / f"{alone}.out").read_text())
            return status or 1
        seconds = time.monotonic() - started
        print(f"alone: {num_trials} trials in {seconds:.0f} s", flush=True)
        started = time.monotonic()
        statuses, num_dead = disturb(
            place / "shared", num_workers, num_trials, num_kills, seconds / num_trials
        )
        counts, wrong = judge(place, num_trials, statuses)
        if num_dead != num_kills:
            wrong.append(f"{num_dead} workers were killed, not {num_kills}")
        counts = {"seconds": f"{time.monotonic() - started:.0f}", "kills": str(num_dead), **counts}
        for cells in (list(counts), ["---"] * len(counts), list(counts.values())):
            print(f"| {' | '.join(cells)} |")
        if wrong:
            for path in sorted(place.glob("*.out")):
                print(f"--- {path.name}\n{path.read_text()}")
        print("\n".join(wrong) if wrong else "no failure")
    return 1 if wrong else 0


def words_of(folder: Path, num_trials: int, is_worker: bool) -> list[str]:
    """Returns the arguments of `python -m dl` for a sweep of small runs in a folder."""
    words = ["sweep", "mnist_mlp", "learning_rate=log:1e-4:1e-1", "hidden=16,24", "--together", "1"]
    words += ["--dataset", "digits", "--num-epochs", "30", "--batch-size", "64", "--mesh", "data=1"]
    words += ["--num-trials", str(num_trials), "--workdir", str(folder)]
    return [*words, "--worker", "--lease", str(LEASE)] if is_worker else words


def start(folder: Path, num_trials: int, is_worker: bool, kill_at: int | None = None) -> int:
    """Starts a sweep of small runs in a forked child, and returns its process id.

    Args:
      folder: the folder of the sweep.
      num_trials: the number of trials.
      is_worker: whether it is a worker.
      kill_at: the number of the change in the folder of the claims before which it is killed. `None` means
        that it is not.
    """
    if child := os.fork():
        return child
    status = 1
    try:
        output = os.open(folder.parent / f"{os.getpid()}.out", os.O_WRONLY | os.O_CREAT, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _run(words_of(folder, num_trials, is_worker), folder, kill_at)
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)


def _run(words: list[str], folder: Path, kill_at: int | None) -> None:
    """Runs a command of `python -m dl` that saves often, and notes each run that it trained to the end."""
    import functools

    import dl.cli.commands
    import dl.studies.runs
    from benchmarks.faults.kills import watch
    from dl.runs.run import Run

    finish = Run.finish

    def finish_and_note(run: Run, result: Any) -> dict[str, Any]:
        finished = finish(run, result)
        with (folder / FINISHED).open("a") as log:
            log.write(f"{run.folder.name}\n")
        return finished

    Run.finish = finish_and_note  # type: ignore[method-assign]
    dl.studies.runs.train_run = functools.partial(dl.studies.runs.train_run, save_every=0.2)
    if kill_at is not None:
        watch(folder / "claims", kill_at)
    sys.argv = ["dl", *words]
    dl.cli.commands.main(words)


def status_of(child: int, block: bool = False) -> int | None:
    """Returns the exit status of a child, -N after signal N, or `None` if it runs."""
    found, status = os.waitpid(child, 0 if block else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def disturb(
    folder: Path, num_workers: int, num_trials: int, num_kills: int, seconds_per_trial: float
) -> tuple[list[int], int]:
    """Runs workers, kills some, and stops one for a while.

    Returns:
      The exit statuses of the workers that were not killed, and the number of the others.
    """
    chance = random.Random(0)
    # The first workers are killed at a change in the folder of the claims, which they all reach.
    plans = [chance.randint(1, num_trials) for _ in range(num_kills // 2)]
    later = num_kills - len(plans)
    thresholds = [1 + k * (num_trials - num_workers - 1) // later for k in range(later)]
    living = {start(folder, num_trials, True, plans.pop() if plans else None) for _ in range(num_workers)}
    statuses: list[int] = []
    num_dead, stopped, stopped_at = 0, 0, 0.0
    while living:
        time.sleep(0.1)
        for child in sorted(living):
            if (status := status_of(child)) is None:
                continue
            living.remove(child)
            if status == -signal.SIGKILL:
                num_dead += 1
                living.add(start(folder, num_trials, True, plans.pop() if plans else None))
            else:
                statuses.append(status)
        done = folder.joinpath(FINISHED)
        num_done = len(done.read_text().split()) if done.exists() else 0
        if thresholds and num_done >= thresholds[0]:
            thresholds.pop(0)
            time.sleep(chance.uniform(0, seconds_per_trial))
            if victims := sorted(living - {stopped}):
                os.kill(chance.choice(victims), signal.SIGKILL)
        if not stopped and num_done >= num_trials // 2 and living:
            stopped, stopped_at = min(living), time.monotonic()
            os.kill(stopped, signal.SIGSTOP)
        if stopped_at and time.monotonic() - stopped_at > 2.5 * LEASE:
            stopped_at = 0.0
            os.kill(stopped, signal.SIGCONT)
    return statuses, num_dead


def judge(place: Path, num_trials: int, statuses: list[int]) -> tuple[dict[str, str], list[str]]:
    """Compares the sweep of the workers with that of a single process; returns counts, and what is wrong."""
    import json

    from benchmarks.faults.commands import end_of, leftovers

    alone, shared = place / "alone", place / "shared"
    wrong = [f"a worker ended with {status}" for status in statuses if status]
    finished = (shared / FINISHED).read_text().split()
    names = [f"trial-{k:03d}" for k in range(num_trials)]
    twice = sorted({name for name in finished if finished.count(name) > 1})
    wrong += [f"{name} was trained to its end {finished.count(name)} times" for name in twice]
    tables = [json.loads((folder / "sweep.json").read_text())["trials"] for folder in (alone, shared)]
    if tables[0] != tables[1]:
        wrong.append("sweep.json has other trials than that of a single process")
    if (alone / "sweep.md").read_text() != (shared / "sweep.md").read_text():
        wrong.append("sweep.md is not that of a single process")
    num_resumed = 0
    for name in names:
        if not (shared / name / "result.json").exists():
            wrong.append(f"{name} has no result")
            continue
        if end_of(alone / name) != end_of(shared / name):
            wrong.append(f"{name} ended differently")
        if left := leftovers(shared / name):
            wrong.append(f"{left} left behind in {name}")
        num_resumed += len(json.loads((shared / name / "run.json").read_text())["starts"]) > 1
    runs = sorted(path.name for path in shared.glob("trial-*"))
    if runs != names:
        wrong.append(f"the folder holds the runs {runs}")
    if hidden := [str(path) for path in (shared / "claims").rglob(".*")]:
        wrong.append(f"{hidden} left behind")
    counts = {
        "trials": str(num_trials),
        "trained to the end": str(len(set(finished))),
        "twice": str(len(twice)),
        "begun again or resumed": str(num_resumed),
        "wrong": str(len(wrong)),
    }
    return counts, wrong


if __name__ == "__main__":
    sys.exit(main("--short" in sys.argv[1:]))
