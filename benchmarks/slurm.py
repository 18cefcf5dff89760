"""Runs jobs of the launcher on a real SLURM of one node, preempts and kills them, and judges their ends.

    python -m benchmarks.slurm [--short]

`benchmarks.slurm_cluster` starts the daemons in a temporary folder. Runs of one and of two processes are
requeued, preempted by a job of a higher tier, and lose a process by SIGKILL, after which the job must return
to the queue by itself; one reaches its time limit (not with `--short`). Each must end with the parameters of
an undisturbed run of the same command without SLURM, bit for bit. An array of four workers shares the 40
trials of a sweep: workers are killed, and one is stopped as before its time limit. Each trial must be
trained to its end once. Exits with status 1 if anything went wrong. Without SLURM it says so and exits with
status 0.
"""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import digest_of
from benchmarks.slurm_cluster import URGENT, Cluster, missing_programs, wait_for
from benchmarks.sweep_workers import FINISHED, judge, words_of

PYTHON = ("python", "-m")
RUN = (*PYTHON, "experiments.mnist_mlp", "--dataset", "digits", "--save-every", "0.5", "--no-report")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
PATIENCE = 300.0  # seconds until a job is expected to go on or to end


def main(is_short: bool) -> int:
    """Runs the campaign and prints its table in Markdown; returns the exit status."""
    if missing := missing_programs():
        print(f"skipped: {', '.join(missing)} not installed; the packages are slurm-wlm and munge")
        return 0
    draw = random.Random(0)
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="dl-slurm-", dir="/tmp") as name:
        place = Path(name)
        _set_environment(place)
        (place / "slurm").mkdir()
        with Cluster(place / "slurm") as cluster:
            print("| what | runs | disturbances | failures | time |\n|---|---:|---|---:|---:|", flush=True)
            parts = [
                lambda: disturb_run(cluster, place, draw, 1, 400, 2 if is_short else 6),
                lambda: disturb_run(cluster, place, draw, 2, 60, 1 if is_short else 3),
            ]
            parts.append(lambda: disturb_sweep(cluster, place, draw, *((8, 3) if is_short else (40, 10))))
            if not is_short:
                parts.append(lambda: reach_limit(cluster, place))
            for part in parts:
                began = time.monotonic()
                what, runs, disturbances, found = part()
                seconds = time.monotonic() - began
                print(f"| {what} | {runs} | {disturbances} | {len(found)} | {seconds:.0f} s |", flush=True)
                failures += found
            if failures:
                logs = sorted((place / "runs" / "launch").glob("*.log"))
                print("\n".join(["", *failures, *(f"--- {log.name}\n{log.read_text()}" for log in logs)]))
                print(cluster.logs())
    return 1 if failures else 0


def _set_environment(place: Path) -> None:
    """Makes the folder the submission folder; its jobs use this Python and this code."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(filter(None, paths)),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(place / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    os.chdir(place)


def submit(cluster: Cluster, name: str, options: list[str], command: list[str]) -> str:
    """Submits a command with the launcher; returns the number of the job."""
    said = cluster.call(*PYTHON, "launch.slurm", name, *options, "--", *command)
    if "Submitted batch job" not in said:
        raise RuntimeError(f"{name} was not submitted: {said}")
    return said.split()[-1]


def undisturbed(command: list[str], folder: Path, num_processes: int) -> str:
    """Runs a command without SLURM; returns the digest of its parameters."""
    launch = [*PYTHON, "launch.local", str(num_processes), "--"] if num_processes > 1 else []
    words = [*launch, *command, "--workdir", str(folder)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    digest = digest_of(folder)
    if done.returncode or digest is None:
        raise RuntimeError(f"the undisturbed run failed: {done.stdout}")
    return digest


def disturb_run(
    cluster: Cluster, place: Path, draw: random.Random, num_processes: int, num_epochs: int, count: int
) -> tuple[str, int, str, list[str]]:
    """Disturbs runs; returns what they are, how many, the disturbances, and what went wrong."""
    name = f"run{num_processes}"
    command = [*RUN, "--num-epochs", str(num_epochs)]
    expected = undisturbed(command, place / f"{name}-undisturbed", num_processes)
    tasks = ["--tasks-per-node", str(num_processes)] if num_processes > 1 else []
    found: list[str] = []
    done: Counter[str] = Counter()
    number = 0
    while done.total() < count:
        folder = place / f"{name}-{number}"
        number += 1
        job = submit(cluster, name, ["--time", "1:00:00", *tasks], [*command, "--workdir", str(folder)])
        for _ in range(4):
            if done.total() == count or not _is_training(cluster, job, folder):
                break
            time.sleep(draw.uniform(0.0, 2.0))
            if cluster.state(job) != "RUNNING":
                break
            how = ("requeued", "preempted", "killed")[done.total() % 3]
            done[how] += 1
            if how == "requeued":
                cluster.call("scontrol", "requeue", job)
            elif how == "preempted":
                wish = ["--partition", URGENT, "--exclusive", "--output", "/dev/null", "--wrap", "sleep 1"]
                cluster.call("sbatch", *wish)
            else:
                os.kill(draw.choice(cluster.tasks(job)), 9)
            if not wait_for(lambda: cluster.state(job) != "RUNNING", 90):  # noqa: B023
                found.append(f"{name}: job {job} was {how} and went on")
        found += _end_of_job(cluster, job, folder, expected)
        if ": Terminated" in (place / f"runs/launch/{name}-{job}.log").read_text(encoding="utf-8"):
            found.append(f"{name}: a process of job {job} was stopped and did not save")
    what = "one process" if num_processes == 1 else f"{num_processes} processes"
    return what, number, ", ".join(f"{count} {how}" for how, count in done.items()), found


def _is_training(cluster: Cluster, job: str, folder: Path) -> bool:
    """Waits until a job writes metrics; returns whether it does so before its end."""
    log = folder / "metrics.jsonl"
    size = log.stat().st_size if log.exists() else 0

    def has_news() -> bool:
        return (log.exists() and log.stat().st_size > size) or cluster.state(job) in ENDED

    return wait_for(has_news, PATIENCE, 0.05) and cluster.state(job) == "RUNNING"


def _end_of_job(cluster: Cluster, job: str, folder: Path, expected: str) -> list[str]:
    """Waits for the end of a job; returns what is wrong with it."""
    if not wait_for(lambda: cluster.state(job) in ENDED, PATIENCE):
        return [f"{folder.name}: job {job} has not ended: {cluster.about(job)}"]
    about = cluster.about(job)
    if about["JobState"] != "COMPLETED":
        return [f"{folder.name}: job {job} ended as {about['JobState']} with {about['ExitCode']}"]
    if digest_of(folder) != expected:
        return [f"{folder.name}: it ended with other parameters than the undisturbed run"]
    return []


def reach_limit(cluster: Cluster, place: Path) -> tuple[str, int, str, list[str]]:
    """Runs a training that is longer than its time limit."""
    command = [*RUN, "--num-epochs", "8000"]
    expected = undisturbed(command, place / "limit-undisturbed", 1)
    folder = place / "limit"
    # SLURM looks at limits twice a minute, so SIGTERM comes up to 30 s early.
    options = ["--time", "2", "--save-seconds", "60"]  # and the run takes about 3 minutes
    job = submit(cluster, "limit", options, [*command, "--workdir", str(folder)])
    found = _end_of_job(cluster, job, folder, expected)
    restarts = int(cluster.about(job).get("Restarts", "0"))
    if not restarts:
        found.append("the run ended before its limit")
    return "longer than its time limit", 1, f"{restarts} limits", found


def disturb_sweep(
    cluster: Cluster, place: Path, draw: random.Random, num_trials: int, num_kills: int
) -> tuple[str, int, str, list[str]]:
    """Kills workers of a sweep, starts them again, and stops one as SLURM does before a time limit."""
    num_workers = 4
    alone = [*PYTHON, "dl", *words_of(place / "alone", num_trials, is_worker=False)]
    subprocess.run(alone, stdout=subprocess.DEVNULL, check=True)
    shared = place / "shared"
    shared.mkdir()
    command = [*PYTHON, "dl", *words_of(shared, num_trials, is_worker=True)]
    array = submit(cluster, "sweep", ["--time", "1:00:00", "--workers", str(num_workers)], command)
    jobs = [f"{array}_{number}" for number in range(num_workers)]
    found: list[str] = []
    with _noting_finished(shared):
        for kill in range(num_kills):
            _await_finished(shared, kill * (num_trials - num_workers) // num_kills)
            time.sleep(draw.uniform(0.0, 2.0))
            found += _kill_one(cluster, jobs, draw, is_whole_job=kill % 2 == 1)
            if kill == num_kills // 2:
                found += _stop_first(cluster, array, jobs)
        for job in jobs:
            if not wait_for(lambda: cluster.state(job) in ENDED, PATIENCE):  # noqa: B023
                found.append(f"worker {job} has not ended: {cluster.about(job)}")
    ends = {job: cluster.about(job) for job in jobs}
    found += [
        f"worker {job} ended as {end['JobState']} with {end['ExitCode']}"
        for job, end in ends.items()
        if end["JobState"] != "COMPLETED"
    ]
    restarts = sum(int(end["Restarts"]) for end in ends.values())
    if restarts != num_kills + 1:
        found.append(f"workers were requeued {restarts} times, not {num_kills + 1} times")
    counts, wrong = judge(place, num_trials, [])
    num_runs = int(counts["trained to the end"])
    return f"sweep of {num_workers} workers", num_runs, f"{num_kills} kills, 1 stop", found + wrong


@contextmanager
def _noting_finished(shared: Path) -> Iterator[None]:
    """Notes, in the background, each result that a worker writes. A second one is another file."""
    has_ended = threading.Event()
    seen: set[tuple[str, int, int]] = set()

    def look() -> None:
        for path in shared.glob("trial-*/result.json"):
            state = path.stat()
            if (key := (path.parent.name, state.st_ino, state.st_mtime_ns)) not in seen:
                seen.add(key)
                with (shared / FINISHED).open("a", encoding="utf-8") as log:
                    log.write(f"{path.parent.name}\n")

    def watch() -> None:
        while not has_ended.wait(0.05):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        has_ended.set()
        watcher.join()
        look()


def _await_finished(shared: Path, count: int) -> None:
    log = shared / FINISHED
    wait_for(lambda: count == 0 or (log.exists() and len(log.read_text().split()) >= count), PATIENCE)


def _kill_one(cluster: Cluster, jobs: list[str], draw: random.Random, is_whole_job: bool) -> list[str]:
    """Kills a worker, or all processes of its job, and puts the job back into the queue."""
    victims: dict[str, int] = {}

    def find() -> bool:
        for job in jobs:
            about = cluster.about(job)
            if about.get("JobState") == "RUNNING" and (tasks := cluster.tasks(about["JobId"])):
                victims[job] = tasks[0]
        return bool(victims)

    if not wait_for(find, PATIENCE):
        return ["there was no worker to kill"]
    job = draw.choice(sorted(victims))
    before = int(cluster.about(job)["Restarts"])
    if not is_whole_job:  # Then the script of the job puts it back into the queue.
        os.kill(victims[job], 9)
        is_back = wait_for(lambda: int(cluster.about(job)["Restarts"]) > before, 60)
        return [] if is_back else [f"worker {job} did not return after SIGKILL: {cluster.about(job)}"]
    cluster.call("scancel", "--signal=KILL", "--full", job)
    if not wait_for(lambda: cluster.state(job) in ENDED, 60):
        return [f"worker {job} survived SIGKILL: {cluster.about(job)}"]
    if (state := cluster.state(job)) == "COMPLETED":
        return [f"worker {job} completed in spite of SIGKILL"]
    said = cluster.call("scontrol", "requeue", job)
    return [f"worker {job}, {state}, was not requeued: {said}"] if said.strip() else []


def _stop_first(cluster: Cluster, array: str, jobs: list[str]) -> list[str]:
    """Stops the worker whose job has the number of the whole array. It must return alone."""
    first = next(job for job in jobs if cluster.about(job)["JobId"] == array)
    if not wait_for(lambda: cluster.tasks(array), PATIENCE):
        return [f"worker {first} does not run: {cluster.about(first)}"]
    time.sleep(3.0)  # until it listens to signals
    before = {job: int(cluster.about(job)["Restarts"]) for job in jobs}
    cluster.call("scancel", "--signal=TERM", first)
    wait_for(lambda: int(cluster.about(first)["Restarts"]) > before[first], 60)
    after = {job: int(cluster.about(job)["Restarts"]) for job in jobs}
    if after != before | {first: before[first] + 1}:
        return [f"worker {first} was stopped, and the workers were requeued {after} times after {before}"]
    return []


if __name__ == "__main__":
    sys.exit(main("--short" in sys.argv[1:]))
