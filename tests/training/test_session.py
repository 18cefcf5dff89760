"""A session without a folder: what it needs of its log, its checkpoints and its run, and no more."""

import jax
import jax.numpy as jnp
import pytest

from dl.runs.console import Console
from dl.runs.memory import MemoryLog, MemoryRun
from dl.training.batches import make_batches
from dl.training.processes import Alone
from dl.training.program import Program
from dl.training.samples import Samples
from dl.training.session import Session
from dl.training.signals import Stopped, StopSignals
from dl.training.start import find_start
from tests.helpers import EXPERIMENT, SignallingConsole, definition_of, train_in


class MemoryCheckpoints:
    directory = "memory"

    def __init__(self):
        self.saved = {}

    @property
    def steps(self):
        return sorted(self.saved)

    def save(self, step, state, progress):
        self.saved[step] = jax.tree.map(jnp.copy, state), progress  # the next step consumes its own

    def restore(self, abstract_state, trouble_with):
        return self.saved[max(self.saved)] if self.saved else None

    def wait(self):
        pass


def end_of(mesh, checkpoints, log, console):
    batches = make_batches(EXPERIMENT, mesh)
    program = Program(EXPERIMENT, mesh, batches)
    start = find_start(program, checkpoints, None, console)
    together = Alone()
    with StopSignals() as together.signals:
        run = MemoryRun(definition_of())
        session = Session(
            EXPERIMENT,
            run,
            program,
            program.compile(),
            batches,
            start,
            log,
            checkpoints,
            console,
            together,
            Samples(EXPERIMENT, (), run, -1, console),
        )
        session.run_to_end(log_every=1, save_every=1e9)
        return session.result()


@pytest.mark.slow
def test_a_session_in_memory_ends_as_a_run_in_a_folder(tmp_path, mesh1):
    expected = train_in(tmp_path / "run", mesh1)
    checkpoints, log = MemoryCheckpoints(), MemoryLog()
    with pytest.raises(Stopped, match="at step . of 12; to resume: train again; give a folder"):
        end_of(mesh1, checkpoints, log, SignallingConsole(5))
    assert checkpoints.steps[0] < 12
    result = end_of(mesh1, checkpoints, log, Console(is_quiet=True))
    assert result["params_digest"] == expected["params_digest"]
    assert result["metrics"] == expected["metrics"]
    assert result["intervals"] == expected["intervals"]
    steps = [line["step"] for line in log.lines if line["kind"] == "train"]
    assert steps == list(range(1, 13))
    assert (log.lines[-1]["kind"], log.lines[-1]["step"]) == ("test", 12)
