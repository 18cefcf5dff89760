"""The start of training in a process: the newest checkpoint of the run, or the initial state."""

from typing import NamedTuple

from dl.errors import UserError
from dl.freezing import constants_of
from dl.runs.console import Console
from dl.runs.memory import NoCheckpoints
from dl.stopping import Best
from dl.training.checkpoint import Checkpoints
from dl.training.program import Program
from dl.training.progress import Progress
from dl.training.result_json import frozen_digest
from dl.training.state import TrainState
from dl.types import Variables


class Start(NamedTuple):
    """Where a process starts to train: at the newest checkpoint, or before the first step.

    Attributes:
      state: the training state, on the devices.
      progress: the progress of the run, on the host.
      step: number of updates that are done.
    """

    state: TrainState
    progress: Progress
    step: int


def find_start(
    program: Program, checkpoints: Checkpoints | NoCheckpoints, warm_start: Variables | None, console: Console
) -> Start:
    """Returns the newest intact checkpoint, or the initial state if nothing was saved.

    Args:
      program: the program of the experiment.
      checkpoints: the checkpoints of the run.
      warm_start: host arrays that replace initial variables.
      console: where the progress is shown.

    Raises:
      UserError: no checkpoint can be read.
    """
    progress = Progress(best=Best.none_yet(len(program.population)))  # starts its clock
    restored = checkpoints.restore(program.abstract_state.saved, program.trouble_with)
    if restored is None:
        state = program.init(warm_start)
        progress.frozen_digest = frozen_digest(program.eval_variables(state), program.config.frozen)
        return Start(state, progress, 0)
    state, saved = restored
    if constants_of(program.abstract_state.model_state):
        constants = constants_of(program.init(warm_start).model_state)
        state = state.replace(model_state={**state.model_state, **constants})
    try:
        progress = Progress.from_json(saved)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the progress record of the newest checkpoint in {checkpoints.directory} cannot be "
            f"read ({type(error).__name__}: {error}); remove this checkpoint, or start in another --workdir"
        ) from None
    step = int(state.step.max())  # all runs of a population are at the same step
    console.line(f"resuming at step {step:,} of {program.num_steps:,}")
    return Start(state, progress, step)
