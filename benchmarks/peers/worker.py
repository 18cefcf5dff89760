"""A process of one contestant: python -m benchmarks.peers.worker NETWORK REFERENCE FRAMEWORK [VARIANT]."""

import os
import sys
import traceback
from pathlib import Path

from benchmarks.peers.networks import NETWORKS
from benchmarks.peers.reference import Different, Reference
from benchmarks.peers.turns import Turns


def main() -> None:
    name, path, framework, *variant = sys.argv[1:]
    turns = Turns()
    try:
        if framework == "reference":
            from benchmarks.peers.ours import make_reference

            make_reference(name).save(Path(path))
        elif framework == "dl":
            from benchmarks.peers import ours

            ours.run(name, turns)
        elif framework == "PyTorch":
            from benchmarks.peers import with_torch

            threads = len(os.sched_getaffinity(0))
            with_torch.run(NETWORKS[name], Reference.load(Path(path)), variant[0], threads, turns)
        else:
            from benchmarks.peers import with_keras

            with_keras.run(NETWORKS[name], Reference.load(Path(path)), variant[0], turns)
    except Different as error:
        turns.reply({"different": str(error)})
    except Exception as error:  # of any framework; the table then lacks this contestant, by name
        traceback.print_exc()
        turns.reply({"failed": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"})


if __name__ == "__main__":
    main()
