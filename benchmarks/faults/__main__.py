"""Injects faults into small runs, and says what became of them.

    python -m benchmarks.faults [--short]

Damages in every file of a run, finished and stopped in the middle, with `resume`, `report`, `compare` and
`predict`; kills at every file-system call and at random times; disks that take no more. Exits with status 1
if anything is silently wrong, ends in a traceback, is lost, or is left behind. Disks of their own need root.
"""

import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np


def main(is_short: bool) -> int:
    """Runs the campaigns, prints their tables in Markdown and what went wrong; returns the exit status."""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="dl-faults-") as name:
        place = Path(name)
        for variable, folder in (("TFDS_DATA_DIR", "data"), ("XDG_CACHE_HOME", "cache")):
            (place / folder).mkdir()
            os.environ[variable] = str(place / folder)
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(place / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        from benchmarks.faults import commands, damage, kills, storage

        import_all()
        from PIL import Image

        image, other = place / "image.png", place / "other"
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(image)
        commands.in_child(lambda: commands.train(other, "--seed", "1", "--no-report"))
        for title, run in (
            ("Damaged files", lambda: damage.campaign(place, 12 if is_short else 300, image, other)),
            ("Kills", lambda: kills.campaign(place, 4 if is_short else 100)),
            ("Disks and folders", lambda: storage.campaign(place)),
        ):
            started = time.monotonic()
            (header, *rows), wrong = run()
            print(f"\n## {title} ({time.monotonic() - started:.0f} s)\n")
            for cells in (header, ["---"] * len(header), *rows):
                print(f"| {' | '.join(cells)} |")
            print("\n".join(["", *wrong]), flush=True)
            failures += len(wrong)
    print(f"{failures} failures" if failures else "no failure")
    return 1 if failures else 0


def import_all() -> None:
    """Imports what the commands import late, so that no child has to."""
    import jinja2
    import matplotlib.pyplot
    import orbax.checkpoint
    import sklearn.metrics
    import tensorflow_datasets

    import dl.report

    assert all((jinja2, matplotlib.pyplot, orbax.checkpoint, sklearn.metrics, tensorflow_datasets, dl.report))
    warnings.filterwarnings("ignore", message=".*fork.*")  # JAX has imported its code, and started no thread


if __name__ == "__main__":
    sys.exit(main("--short" in sys.argv[1:]))
