"""The options that every run has, beside those of its experiment."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from dl.cli.options import YIELDS, ComputeOptions
from dl.option_types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from dl.ranges import Range
from dl.training.processes import STALL_SECONDS


@dataclasses.dataclass(frozen=True)
class RunOptions(ComputeOptions):
    """Where and how a run happens. Only the precision and the clipping change its results.

    Attributes:
      workdir: Folder of the run, on a disk or gs://BUCKET/FOLDER. If the folder holds a run, that run is
        resumed. Default: a new folder, runs/NAME-TIME.
      mesh: How arrays are split over devices: data=8 splits each batch over eight devices; data=-1 uses all
        devices. See docs/devices.md. Default: data=-1.
      num_seeds: Number of runs, with the seeds SEED, SEED + 1, … They are trained at the same time in one
        program, and the result is the mean over them.
      folds: Number of folds of a cross-validation over the training and validation splits. One run is
        trained for each fold, in the subfolders fold-1, fold-2, … of --workdir. The result is the mean over
        the held-out folds. The test split is not read. Default: no cross-validation.
      folds_with_test: Divide the test split into folds too. Published results on a set without an official
        test split are over all of its examples.
      log_every: Number of steps between two lines of metrics.jsonl.
      save_every: Number of seconds between two checkpoints. A checkpoint is also written at the end, and when
        the run is stopped.
      report: Write report.html into the folder of the run at the end.
      baseline: Compute the baseline of the experiment at the end, and compare the network with it.
      debug_nans: Stop at the first NaN, and name the operation and the line of your code that produced it.
        Training is slower.
      precision: Number format of the model's computation. Parameters, statistics and losses stay in float32.
        With float16, the loss is also scaled.
      clip_norm: Largest global norm of the gradients; larger gradients are scaled down. Default: no clipping.
      reduction: How gradients are added over devices. fast: in the order that is fastest. exact: in a fixed
        order, so that a run has the same bits on 1, 2, 4 and 8 devices; each step takes longer.
      profile: Write a trace of a few steps into WORKDIR/profile, for Perfetto or XProf.
      coordinator: HOST:PORT of process 0, in a run of several processes. See docs/devices.md. Default:
        $DL_COORDINATOR, or what SLURM or Cloud TPU states.
      num_processes: Number of processes. Default: $DL_NUM_PROCESSES, or what SLURM or Cloud TPU states.
      process_id: Number of this process, from 0. Default: $DL_PROCESS_ID, or what SLURM or Cloud TPU states.
      stall_after: Smallest number of seconds after which a process without an answer or without progress
        counts as lost. The run then ends in all processes with the exit status 75.
    """

    workdir: Path | None = None
    mesh: str | None = None
    num_seeds: PositiveInt = 1
    folds: Annotated[int, Range(2)] | None = None
    folds_with_test: bool = False
    log_every: PositiveInt = 10
    save_every: NonNegativeFloat = 30.0
    report: bool = True
    baseline: bool = dataclasses.field(default=True, metadata=YIELDS)
    debug_nans: bool = False
    precision: Literal["float32", "bfloat16", "float16"] = dataclasses.field(
        default="float32", metadata=YIELDS
    )
    clip_norm: PositiveFloat | None = dataclasses.field(default=None, metadata=YIELDS)
    reduction: Literal["fast", "exact"] = dataclasses.field(default="fast", metadata=YIELDS)
    profile: bool = dataclasses.field(default=False, metadata=YIELDS)
    coordinator: str | None = dataclasses.field(default=None, metadata=YIELDS)
    num_processes: PositiveInt | None = dataclasses.field(default=None, metadata=YIELDS)
    process_id: NonNegativeInt | None = dataclasses.field(default=None, metadata=YIELDS)
    stall_after: PositiveFloat = dataclasses.field(default=STALL_SECONDS, metadata=YIELDS)
