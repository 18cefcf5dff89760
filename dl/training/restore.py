"""Restores the variables that a run ended with, from its checkpoint."""

from jax.sharding import Mesh

from dl.errors import UserError
from dl.experiment import Experiment
from dl.runs.digest import tree_digest
from dl.runs.folder import RunFolder
from dl.training.batches import make_batches
from dl.training.checkpoint import Checkpoints
from dl.training.program import Program
from dl.training.state import TrainState
from dl.types import Variables


def restore_variables(experiment: Experiment, run: RunFolder, mesh: Mesh) -> Variables:
    """Returns the variables that a finished run ended with, as arrays on the devices. Nothing is written.

    Raises:
      UserError: there is no intact checkpoint, or no checkpoint that matches the result.
    """
    program = Program(experiment, mesh, make_batches(experiment, mesh))
    expected = (run.result or {}).get("params_digest")

    def variables_of(state: TrainState) -> Variables:
        return program.eval_variables(state) if state.best is None else state.best

    def trouble_with(state: TrainState) -> str:
        if expected is None or tree_digest(variables_of(state)["params"]) == expected:
            return ""
        return "its parameters are not those that the result is of"

    nothing = UserError(
        f"{run.folder} has no checkpoint to read the parameters from; if the run has not finished, resume "
        "it, else train it again"
    )
    if not run.checkpoints_path.is_dir():
        raise nothing
    with Checkpoints(run.checkpoints_path, identity=run.identity, is_read_only=True) as checkpoints:
        restored = checkpoints.restore(program.abstract_state.saved, trouble_with)
    if restored is None:
        raise nothing
    return variables_of(restored[0])
