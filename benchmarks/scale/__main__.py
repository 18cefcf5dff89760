"""What the house around training costs when it grows: time and peak memory at two sizes.

    python -m benchmarks.scale [CASE …] [--small] [--json FILE]

The cases are classes, examples, rows of metrics, runs that are compared, and trials of a sweep; the default
is all of them. Each stage of a case (training with evaluation and predictions, the report, the comparison,
the sweep) runs in a process of its own at both sizes. `growth` is the CPU time at the large size divided by
that at the small one: at most the ratio of the sizes if the time is linear. `--small` measures a tenth of
each size. The memory is the largest resident set of the process, imports included; it is measured on Linux.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_STAGE = "--stage"  # then the case, the stage, the size and the folder, in a child


def main() -> int:
    """Prints the table, and returns the exit status: 1 if a stage failed."""
    if sys.argv[1:2] == [_STAGE]:
        name, stage, size, folder = sys.argv[2:]
        print(json.dumps(measure(name, stage, int(size), Path(folder))))
        return 0
    from benchmarks.scale.cases import CASES

    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)}")
    parser.add_argument("--small", action="store_true", help="Measure a tenth of each size.")
    parser.add_argument("--json", type=Path, help="JSON file of the rows. Default: no file.")
    options = parser.parse_args()
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"{unknown[0]!r} is not a case; choose one of {', '.join(CASES)}")
    rows, status = [], 0
    print("| case | size | stage | seconds | CPU s | growth | peak MiB | files |", flush=True)
    print("|---|---:|---|---:|---:|---:|---:|---|", flush=True)
    for name in options.cases or CASES:
        seconds: dict[str, float] = {}
        for size in CASES[name].sizes:
            size = max(2, size // 10) if options.small else size
            with tempfile.TemporaryDirectory(prefix="dl-scale-") as folder:
                for stage in CASES[name].stages:
                    row = run(name, stage, size, folder)
                    if row is None:
                        status = 1
                        break
                    growth = row["cpu_seconds"] / seconds[stage] if stage in seconds else None
                    seconds[stage] = row["cpu_seconds"]
                    rows.append({**row, "growth": growth})
                    print(line_of(rows[-1]), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return status


def run(name: str, stage: str, size: int, folder: str) -> dict[str, Any] | None:
    """Returns the row of a stage, which runs in a child process; `None` if it failed."""
    words = [sys.executable, "-m", "benchmarks.scale", _STAGE, name, stage, str(size), folder]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{name} {size:,} {stage}: exit status {done.returncode}", file=sys.stderr)
        return None
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(name: str, stage: str, size: int, folder: Path) -> dict[str, Any]:
    """Runs a stage here, and returns its row: seconds without imports, and the memory of the process."""
    from benchmarks.scale.cases import CASES

    case = CASES[name]
    started, cpu_started = time.perf_counter(), time.process_time()
    case.stages[stage](size, folder)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    files = sorted(path for pattern in case.files for path in folder.glob(pattern))
    return {
        "case": name,
        "size": size,
        "stage": stage,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak_bytes(),
        "file_bytes": {path.name: path.stat().st_size for path in files},
    }


def peak_bytes() -> int:
    """Returns the largest resident set of this process so far."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux states VmHWM")


def line_of(row: dict[str, Any]) -> str:
    """Returns a row of the table in Markdown."""
    growth = "" if row["growth"] is None else f"{row['growth']:.1f}"
    files = ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in row["file_bytes"].items())
    memory = f"{row['peak_bytes'] / 2**20:,.0f}"
    cells = [row["case"], f"{row['size']:,}", row["stage"], f"{row['seconds']:.1f}"]
    cells += [f"{row['cpu_seconds']:.1f}", growth, memory, files]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
