"""What a compressed model costs: parameters, FLOPs, bytes of its file, and the time of a prediction.

The times of several models are measured in turns, so that all of them meet the same noise of the machine, and
the median of the rounds is shown. They are of this machine. A compiled function predicts a whole batch; the
variables are its arguments, as in an exported model.
"""

import dataclasses
import statistics
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from dl.data.recorded import remembering
from dl.errors import UserError
from dl.experiment import Experiment, variable_shapes
from dl.inference.load import open_run, rebuild
from dl.methods.compression import as_record, as_stored, from_record, lasting, records_of
from dl.methods.distillation import MAPS
from dl.runs.folder import RunFolder
from dl.runs.predictions import outputs_fn
from dl.runs.tables import Table
from dl.sharding import make_mesh
from dl.stopping import FINAL_SPLIT
from dl.studies.benchmark_tables import shown_as
from dl.studies.compress import AnyExperiment
from dl.system.cores import num_cores
from dl.system.energy import estimate_energy
from dl.training.restore import restore_variables
from dl.types import Batch, Variables

BATCH_SIZES = (1, 32)
_SECONDS = 0.02  # of the calls of one round, at least


@dataclasses.dataclass(frozen=True)
class Measured:
    """A finished run and what its model costs.

    Attributes:
      name: name of the model in tables.
      metric: the most important metric of the run.
      value: its value on the test split.
      interval: the bounds of its 95 % interval; `None` if there is no interval.
      num_parameters: number of parameters, those of quantised layers without their scales.
      num_nonzero: number of them that are not 0.
      flops: FLOPs of the forward pass of one example; see `dl.flops`. Products with zeros count.
      num_bytes: bytes of all variables in a safetensors file.
      num_packed_bytes: bytes of that file after zlib, which shrinks zeros.
      seconds: time of a prediction in seconds, by the size of the batch.
      joules: energy of a prediction in the largest batch: rated power times time; `None` if the power of the
        device is not known.
    """

    name: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    num_parameters: int
    num_nonzero: int
    flops: int | None
    num_bytes: int
    num_packed_bytes: int
    seconds: Mapping[int, float]
    joules: float | None

    @property
    def throughput(self) -> float:
        """Predictions a second in the largest batch."""
        return max(self.seconds) / self.seconds[max(self.seconds)]


@dataclasses.dataclass(frozen=True)
class Deployed:
    """The model of a finished run as it is used.

    Attributes:
      run: the folder of the run.
      experiment: the experiment of the model; after quantisation-aware training that of the integers.
      variables: the variables of that experiment, on the devices.
      stored: the variables of a file, as the compressions of the run write them.
      shapes: the shapes of the parameters before quantisation, by path.
    """

    run: RunFolder
    experiment: Experiment
    variables: Variables
    stored: Variables
    shapes: Mapping[str, Any]


def deployed(folder: Path | str, experiment: AnyExperiment | None = None) -> Deployed:
    """Returns the model of a finished run as it is used. The data are not needed.

    Raises:
      UserError: the folder does not hold a finished run.
    """
    folder = Path(folder)
    run = open_run(folder)
    run.finished_result()
    with remembering(run.record, folder):
        rebuilt = rebuild(folder, experiment)
        variables = restore_variables(rebuilt.experiment, run, make_mesh())
        records = records_of(run.options.get("compression"))
        compressions = [from_record(record) for record in records]
        stored = as_stored(compressions, variables)
        used = variables
        kinds: list[Any] = list(compressions)
        for number, made in reversed(list(enumerate(kinds))):
            if hasattr(made, "finished"):  # of quantisation-aware training
                used, kinds[number] = made.stored(used), made.finished
        lasting_records = [as_record(made) for made in lasting(kinds)]
        floats = [record for record in lasting_records if record["method"] != "quantization"]
        made_experiment = rebuilt.with_compression(lasting_records).build()
        shapes = variable_shapes(rebuilt.with_compression(floats).build())["params"]
    return Deployed(run, made_experiment, used, stored, _by_path(shapes))


def measure(
    folders: Sequence[Path | str],
    names: Sequence[str] | None = None,
    experiment: AnyExperiment | None = None,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    num_rounds: int = 15,
) -> list[Measured]:
    """Measures the models of finished runs, in turns.

    Args:
      folders: the folders of the runs.
      names: their names in tables. `None` means the names of the folders.
      experiment: their experiment, its NAME or its path; see `dl.load_run`.
      batch_sizes: the numbers of examples that are predicted at once.
      num_rounds: number of times that each model is timed for each size.

    Raises:
      UserError: a folder does not hold a finished run, or a task has no function predict.
    """
    models = [deployed(folder, experiment) for folder in folders]
    calls = {
        (number, size): _prediction(model, size)
        for size in batch_sizes
        for number, model in enumerate(models)
    }
    seconds = time_in_turns(calls, num_rounds)
    return [
        _measured(model, str(name), {size: seconds[number, size] for size in batch_sizes})
        for number, (model, name) in enumerate(
            zip(models, names or [Path(folder).name for folder in folders], strict=True)
        )
    ]


def time_in_turns(calls: Mapping[Any, Callable[[], Any]], num_rounds: int) -> dict[Any, float]:
    """Returns the median time of each function in seconds.

    In each round all of them are called in turn, in an order that changes: what runs before, such as integer
    products that lower the clock rate of the processor, would always disturb the same one.
    """
    repeats = {}
    for name, call in calls.items():
        call()  # compiles
        started = time.perf_counter()
        call()
        repeats[name] = max(1, int(_SECONDS / max(time.perf_counter() - started, 1e-7)))
    times: dict[Any, list[float]] = {name: [] for name in calls}
    names, random = list(calls), np.random.default_rng(0)
    for _ in range(num_rounds):
        for name in (names[at] for at in random.permutation(len(names))):
            calls[name]()  # brings its weights into the caches that the one before has used
            started = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            times[name].append((time.perf_counter() - started) / repeats[name])
    return {name: statistics.median(of_one) for name, of_one in times.items()}


def _prediction(model: Deployed, size: int) -> Callable[[], Any]:
    outputs = outputs_fn(model.experiment)
    if outputs is None:
        raise UserError("the task of the experiment has no function predict; add one")
    spec = model.experiment.data.train.spec
    random = np.random.default_rng(0)
    batch: Batch = {}
    for name, leaf in spec.items():
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        values = random.uniform(size=(size, *leaf.shape)) if is_float else np.zeros((size, *leaf.shape))
        batch[name] = jnp.asarray(values, leaf.dtype)
    batch |= {"index": jnp.arange(size), "mask": jnp.ones(size, bool)}
    predict = jax.jit(outputs)
    return lambda: jax.block_until_ready(predict(model.variables, batch))


def _measured(model: Deployed, name: str, seconds: Mapping[int, float]) -> Measured:
    from safetensors.numpy import save

    result = model.run.finished_result()
    splits = result["metrics"]
    split = FINAL_SPLIT if FINAL_SPLIT in splits else list(splits)[-1]
    metric = result.get("headline") or "loss"
    interval = (result.get("intervals", {}).get(split) or {}).get(metric)
    content = save({path: np.asarray(leaf, order="C") for path, leaf in _by_path(model.stored).items()})
    params = _by_path(model.variables["params"])
    devices, largest = [jax.devices()[0].device_kind], max(seconds)
    energy = estimate_energy(devices, num_cores(), seconds[largest] / largest)
    return Measured(
        name=name,
        metric=metric,
        value=splits[split][metric],
        interval=None if interval is None else (interval[0], interval[1]),
        num_parameters=sum(int(np.prod(leaf.shape)) for leaf in model.shapes.values()),
        num_nonzero=sum(_nonzero(np.asarray(params[path])) for path in model.shapes),
        flops=result.get("forward_flops_per_example"),
        num_bytes=len(content),
        num_packed_bytes=len(zlib.compress(content)),
        seconds=seconds,
        joules=None if isinstance(energy, str) else energy.kilowatt_hours * 3.6e6,
    )


def _nonzero(array: np.ndarray) -> int:
    if array.dtype == np.uint8:  # integers of 4 bits, two in a byte
        return int(np.count_nonzero(array & 15) + np.count_nonzero(array >> 4))
    return int(np.count_nonzero(array))


def _by_path(tree: Any) -> dict[str, Any]:
    leaves: dict[str, Any] = flatten_dict(dict(tree), sep="/")
    return {path: leaf for path, leaf in leaves.items() if path.split("/")[0] != MAPS}


def table_of(rows: Sequence[Measured], title: str = "compressed models") -> Table:
    """Returns a table with a row for each model."""
    metric = rows[0].metric
    sizes = sorted(rows[0].seconds)
    header = [
        *("model", f"{metric} (95 %)", "parameters", "not 0", "MFLOPs", "kB", "kB packed"),
        *(f"ms, batch {size}" for size in sizes),
    ]
    return Table(title, header, [_cells(row, sizes) for row in rows])


def _cells(row: Measured, sizes: Sequence[int]) -> list[str]:
    low_high = "" if row.interval is None else " to ".join(shown_as(x, row.metric) for x in row.interval)
    return [
        row.name,
        shown_as(row.value, row.metric) + (f" ({low_high})" if low_high else ""),
        f"{row.num_parameters:,}",
        f"{row.num_nonzero:,}",
        "" if row.flops is None else f"{row.flops / 1e6:.4g}",
        f"{row.num_bytes / 1e3:,.1f}",
        f"{row.num_packed_bytes / 1e3:,.1f}",
        *(f"{row.seconds[size] * 1e3:.3g}" for size in sizes),
    ]
