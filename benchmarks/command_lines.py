"""Random command lines: each must end in one line on the standard error and status 2, or in a run.

    python -m benchmarks.command_lines [N] [SEED]

Draws N command lines (500) over all experiments and all commands of `python -m dl`: options that do not
exist, lack a value, come twice, or have values that are empty, huge, negative, not finite, of another type,
or no text; folders for files, files for folders, pipes, devices, damaged runs; words in odd places. They are
run in a folder of their own on the embedded digits, one after the other in one process with limited memory,
which is replaced where a line ends it. A line that goes on for `LIMIT` seconds is interrupted as by Ctrl-C.

Prints a table of how they ended, and every line at fault; exit status 1 if there is one. A fault is a
traceback, another status than those of `STATUSES`, status 2 without exactly one line on the standard error,
a run whose report failed, a process that died, or a line that Ctrl-C does not end.
"""

import collections
import contextlib
import dataclasses
import inspect
import io
import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

LIMIT = 8.0  # seconds, then Ctrl-C
PATIENCE = 60.0  # more seconds, then the line is at fault
MEMORY = 4 * 2**30  # bytes beyond what the process has at its start
STATUSES = {
    0: "ran",
    1: "ran, and says no",
    2: "refused in one line",
    74: "cannot be stored",
    130: "interrupted",
}
CHEAP = ("mlp_342", "mnist_mlp")  # drawn as often as all others together

VALUES = [
    *("", " ", "0", "-1", "1", "2", "3.5", "1e-3", "1e400", "-0.0", "nan", "inf", "-inf", "1_000", "0x10"),
    *("+5", "\u0663", "\uff19", "9" * 400, "9" * 5000, "2147483648", "1000000000", "4294967296"),
    *("True", "false", "None", "none", "auto", "é", "\U0001f600", "\u202e", "a\nb", "\x1b[31m", "\udcff"),
    *("x" * 5000, "--", "-", "-h", "--help", "=", "a=b", "../x", "/proc", "/dev/null", "/dev/full", "~"),
    *("~/x", "$HOME", "*", "'", '"', "{}", "[]", "()", "a,b", ":", "log:1:2", "1,2,3", "data=3", "data=0"),
    *("data", "fsdp=-1", "validation.loss", "file.txt", "folder", "empty", "pipe", "junk.png", "junk.py"),
    *("run", "torn", "no/such/path", "digits", "-2147483649"),
]
PLAUSIBLE = ["1", "2", "3", "5", "0.5", "1e-3", "0.1", "data=1", "out", "out.png", "digits"]
STRAY = [
    *("-h", "--help", "--version", "--", "-", "", "x", "=", "--=", "--=3", "---", "-x", "-1", "--no-such"),
    *("--no-such=1", "--no-report", "--report", "--seed", "--SEED=1", "--see=1", "--batch_size=2"),
    *("@file.txt", "\U0001f600", "--é"),
]
NAMES = [
    *("", "x", "..", ".", "/", "mnist_mlpp", "experiments", "experiments.", ".mlp_342", "os", "dl"),
    *("dl.flops", "a.b.c", "experiments/mlp_342", "experiments/no.py", "junk.py", "pipe", "folder"),
    *("file.txt", "empty.py", "-", "\x1b[2J", "\udcff", "x" * 5000, "MLP_342", "mlp 342", "mlp-342"),
    *("test.py", "~/x.py", "__main__", "json", "sys", "é"),
]
TINY = {"dataset": "digits", "num-epochs": "1", "num-steps": "2", "smoke": "True", "num-seeds": "1"}


def draw(
    random_: random.Random, experiments: dict[str, list[str]], commands: dict[str, list[str]]
) -> list[str]:
    """Returns the words of one command line; the first is the module that `python -m` runs.

    Args:
      random_: what draws.
      experiments: by name, the flags that it takes.
      commands: of `python -m dl`, the flags of each, besides those of an experiment.
    """
    name = random_.choice(CHEAP if random_.random() < 0.5 else sorted(experiments))
    of_experiment = experiments[name]
    base = [f"--{flag}={value}" for flag, value in TINY.items() if flag in of_experiment]
    if random_.random() < 0.5:
        words = [f"experiments.{name}", *base, *_options(random_, of_experiment)]
    else:
        command = random_.choice([*sorted(commands), "train", "", name, "sumary", "\U0001f600"])
        places = {
            "predict": ["run", "junk.png"],
            "compare": ["run", "run"],
            **{name_: ["run"] for name_ in ("report", "robustness", "export")},
            **{name_: [] for name_ in ("list", "train", "")},
        }.get(command, [name])
        if random_.random() < 0.3:
            places = [random_.choice([*NAMES, *VALUES]) for _ in range(random_.randrange(4))]
        of_command = commands.get(command, [])
        is_of_experiment = places == [name]
        flags = of_command + (of_experiment if is_of_experiment else [])
        searched = ["seed=1,2"] if command == "sweep" and random_.random() < 0.7 else []
        more = {"sweep": ["--num-trials=1"], "overfit": ["--steps=2"], "lr-find": ["--steps=2"]}.get(
            command, []
        )
        rest = [*(base if is_of_experiment else []), *more, *_options(random_, flags)]
        words = ["dl", command, *places, *searched, *rest]
    if random_.random() < 0.25:
        words.insert(random_.randrange(1, len(words) + 1), random_.choice([*STRAY, *VALUES]))
    if random_.random() < 0.1:
        tail = words[1:]
        random_.shuffle(tail)
        words[1:] = tail
    return words


def _options(random_: random.Random, flags: Sequence[str]) -> list[str]:
    words = []
    for _ in range(random_.choice([0, 1, 1, 1, 2, 3])):
        flag = f"--{random_.choice(flags)}" if flags else "--x"
        value = random_.choice(PLAUSIBLE if random_.random() < 0.4 else VALUES)
        if random_.random() < 0.05:
            flag = flag[:-1]
        words += random_.choice(
            [[f"{flag}={value}"], [flag, value], [flag, value], [flag], [f"{flag}={value}"] * 2]
        )
    return words


def prepare(folder: Path) -> None:
    """Fills a folder with what command lines may point to."""
    (folder / "file.txt").write_text("text")
    (folder / "folder").mkdir()
    (folder / "folder/x").write_text("x")
    (folder / "empty").mkdir()
    (folder / "empty.py").write_text("")
    (folder / "test.py").write_text("def experiment():\n    return 3\n")
    os.mkfifo(folder / "pipe")
    for name in ("junk.png", "junk.py"):
        (folder / name).write_bytes(bytes(range(256)) * 4)
    (folder / "torn").mkdir()
    (folder / "torn/run.json").write_text('{"experiment": "experiments.mlp_342", "opt')


def work(folder: Path) -> None:
    """Runs the command lines that come on the standard input, one line of JSON each, and answers likewise."""
    import jax

    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    import dl.cli.commands  # noqa: F401, before the memory is limited

    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.chdir(folder)
    sys.path[0] = ""  # as `python -m` has it
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    for line in sys.stdin:
        answers.write(json.dumps(_run(json.loads(line))) + "\n")
        answers.flush()


class _Endless(BaseException):
    """Ctrl-C did not end a line."""


def _run(words: list[str]) -> dict[str, Any]:
    module, *argv = words
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [module, *argv]

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        os.kill(os.getpid(), signal.SIGINT)

    def give_up(number: int, frame: FrameType | None) -> None:
        raise _Endless

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    status: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            _main_of(module)(argv)
    except SystemExit as exit_:
        status = exit_.code or 0
    except BaseException:
        status = "traceback"
        err.write(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {"status": status, "out": out.getvalue()[-2000:], "err": err.getvalue()[-4000:]}


def _main_of(module: str) -> Callable[[list[str]], None]:
    import importlib

    if module == "dl":
        from dl.cli.commands import main

        return main
    from dl.cli.main import main as run

    # As its last lines do; the experiment of a benchmark is trained once.
    source = importlib.import_module(module)
    own = getattr(source, "main", run)
    return lambda argv: own(source.experiment, argv)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command line ended: in words, and whether that is a fault."""

    words: Sequence[str]
    how: str
    is_fault: bool
    text: str


def judge(words: Sequence[str], answer: dict[str, Any] | None) -> Ended:
    """Returns how a line ended, from what the process says of it; None: it died."""
    if answer is None:
        return Ended(words, "the process died", True, "")
    status, err = answer["status"], answer["err"]
    if "Traceback (most recent call last)" in err:
        return Ended(words, "traceback", True, err)
    if status not in STATUSES:
        return Ended(words, f"status {status}", True, err)
    lines = err.splitlines()
    if (
        status == 2
        and (len(lines) != 1 or not lines[0].startswith("error: "))
        and answer["out"][:6] != "usage:"
    ):
        return Ended(words, "status 2 without one line", True, err)
    if "the report was not written (" in err:
        return Ended(words, "no report", True, err)
    return Ended(words, STATUSES[status], False, err)


class Worker:
    """The process that runs the lines; started again where one ends it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def run(self, words: Sequence[str]) -> dict[str, Any] | None:
        if self._process is None:
            command = [sys.executable, "-m", "benchmarks.command_lines", "--work", str(self._folder)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        if answer := self._process.stdout.readline():
            return json.loads(answer)
        self.close()
        return None

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.communicate()
            self._process = None


def flags_of(function: Callable[..., Any], *options: type) -> list[str]:
    """Returns the options of an experiment and of dataclasses, as they are written."""
    names = [*inspect.signature(function).parameters]
    names += [field.name for cls in options for field in dataclasses.fields(cls)]
    return [name.replace("_", "-") for name in names]


def main() -> int:
    """Draws, runs and judges; returns the exit status."""
    from dl.cli.commands import COMMANDS
    from dl.cli.main import RunOptions
    from dl.runs.find import find_experiment, known_experiments

    number, seed = (
        (int(word) for word in (*sys.argv[1:], "500", "0")[:2])
        if len(sys.argv) < 3
        else map(int, sys.argv[1:3])
    )
    experiments = {name: flags_of(find_experiment(name), RunOptions) for name in known_experiments()}
    commands = {name: flags_of(lambda: None, command.options) for name, command in COMMANDS.items()}
    random_ = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        (home / "lines").mkdir()
        os.environ |= {
            "HOME": place,
            "XDG_CACHE_HOME": str(home / "cache"),
            "TFDS_DATA_DIR": str(home / "data"),
            "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
            "JAX_PLATFORMS": "cpu",
        }
        prepare(home / "lines")
        worker = Worker(home / "lines")
        first = ["experiments.mlp_342", "--workdir=run"]
        found = [
            judge(words, worker.run(words))
            for words in [first, ["experiments.mnist_mlp", "--dataset=digits", "--num-epochs=1"]]
        ]
        for k in range(number):
            words = draw(random_, experiments, commands)
            found.append(judge(words, worker.run(words)))
            if found[-1].is_fault:
                print(
                    f"\n{k}: python -m {shlex.join(words)[:600]}\n{found[-1].how}\n{found[-1].text}",
                    flush=True,
                )
        worker.close()
    print("\n| how it ended | lines |\n|---|---:|")
    for how, count in collections.Counter(ended.how for ended in found).most_common():
        print(f"| {how} | {count} |")
    return int(any(ended.is_fault for ended in found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]))
    else:
        sys.exit(main())
