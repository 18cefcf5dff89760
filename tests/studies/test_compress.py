"""Compressed runs: they are runs as any other, name their parent, and do not need it."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from dl import Experiment, load_run, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.methods import structured_pruning
from dl.methods.distillation import Distillation
from dl.methods.magnitude_pruning import MagnitudePruning
from dl.methods.quantization import Quantization, calibrate
from dl.models.mlp import MLP
from dl.option_types import PositiveFloat, PositiveInt
from dl.runs.console import Console
from dl.runs.folder import RunFolder
from dl.studies.compare import compare_runs
from dl.studies.compress import compress, methods_of, resume
from dl.studies.compression_measures import measure, table_of
from dl.training.loop import train
from tests.helpers import DATA, SignallingConsole, without_timing

QUIET = Console(is_quiet=True)


def experiment(width: PositiveInt = 32, num_steps: PositiveInt = 20, learning_rate: PositiveFloat = 1e-2):
    return Experiment(
        data=DATA,
        task=task.classification(MLP(hidden=(width,), num_classes=2), input_name="features"),
        tx=optimizers.adam(learning_rate),
        num_steps=num_steps,
        batch_size=16,
        eval_batch_size=8,
    )


def other_inputs():
    source = ArraySource({"features": np.zeros((9, 5), np.float32), "label": np.zeros(9, np.int32)})
    data = ArraySplits("other", train=source, evaluations={"validation": source})
    learned = task.classification(MLP(hidden=(), num_classes=2), input_name="features")
    return Experiment(data=data, task=learned, tx=optimizers.adam(1e-2), num_steps=2, batch_size=3)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    from dl import Definition

    folder = tmp_path_factory.mktemp("compress") / "parent"
    train(Definition(experiment), folder, console=QUIET)
    return folder


@pytest.fixture(scope="module")
def pruned(parent):
    folder = parent.with_name("pruned")
    return compress(
        parent,
        MagnitudePruning(sparsity=0.5),
        folder,
        fine_tuning={"num_steps": 6},
        experiment=experiment,
        console=QUIET,
    )


def test_a_compressed_run_names_its_parent_and_its_change(parent, pruned):
    options = json.loads((pruned.folder / "run.json").read_text())["options"]
    result = json.loads((parent / "result.json").read_text())
    assert options["parent"] == {"folder": str(parent), "params_digest": result["params_digest"]}
    assert options["compression"][0]["sparsity"] == 0.5
    assert (options["num_steps"], options["width"]) == (6, 32)


def test_it_starts_from_its_parent_and_is_loaded_without_it(pruned, parent, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(pruned.folder, copy)
    loaded = load_run(copy, experiment)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, pruned.variables)
    kernels = [loaded.params[name]["kernel"] for name in ("Dense_0", "Dense_1")]
    assert sum(int((kernel == 0).sum()) for kernel in kernels) == sum(kernel.size for kernel in kernels) // 2
    start = RunFolder(copy).initial_variables({})["params"]["Dense_0"]["bias"]
    np.testing.assert_array_equal(start, load_run(parent, experiment).params["Dense_0"]["bias"])


def test_the_same_call_returns_the_finished_run(pruned, parent):
    again = compress(
        parent,
        MagnitudePruning(sparsity=0.5),
        pruned.folder,
        fine_tuning={"num_steps": 6},
        experiment=experiment,
        console=QUIET,
    )
    assert again.record == pruned.record
    with pytest.raises(UserError, match="holds another run"):
        compress(parent, MagnitudePruning(sparsity=0.6), pruned.folder, experiment=experiment, console=QUIET)


def test_a_compressed_run_is_compressed_again(pruned):
    folder = pruned.folder.with_name("chain")
    chain = compress(pruned.folder, calibrate, folder, fine_tuning=None, experiment=experiment, console=QUIET)
    assert methods_of(RunFolder(folder)) == ["magnitude_pruning", "quantization"]
    # The first layer stays float; in it and in the integers, the pruned weights are still 0.
    for name in ("Dense_0", "Dense_1"):
        one, other = (np.asarray(run.params[name]["kernel"]) for run in (pruned, chain))
        assert (other[one == 0] == 0).all()
    assert chain.params["Dense_1"]["kernel"].dtype == np.int8
    rows = measure([pruned.folder, folder], ["pruned", "chain"], experiment, batch_sizes=(1, 4), num_rounds=1)
    assert [row.num_parameters for row in rows] == [194, 194]
    assert rows[0].num_nonzero == int(sum((leaf != 0).sum() for leaf in jax.tree.leaves(pruned.params)))
    assert rows[1].num_bytes < rows[0].num_bytes
    assert rows[0].value == pruned.metrics["test"]["accuracy"]
    assert "| pruned | " in table_of(rows).to_markdown()
    with pytest.raises(UserError, match="is quantised, and its integers cannot be compressed"):
        compress(folder, Distillation(), experiment=experiment)


def student_of(parent, folder, console=QUIET):
    fine_tuning = {"width": 4, "num_steps": 8}
    how = Distillation(features=(("Dense_0", "Dense_0"),))
    return compress(parent, how, folder, fine_tuning=fine_tuning, experiment=experiment, console=console)


@pytest.mark.slow
def test_a_killed_student_resumes_without_its_teacher(parent, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(parent, teacher)
    whole = student_of(teacher, tmp_path / "whole")
    with pytest.raises(BaseException, match="stopped by SIGTERM"):
        student_of(teacher, tmp_path / "killed", SignallingConsole(3))
    shutil.rmtree(teacher)
    resumed = resume(tmp_path / "killed", experiment=experiment, console=QUIET)
    assert resumed.record["params_digest"] == whole.record["params_digest"]
    assert without_timing(tmp_path / "killed") == without_timing(tmp_path / "whole")
    loaded = load_run(tmp_path / "killed", experiment)
    assert list(loaded.variables) == ["params"]
    assert loaded.predict(np.zeros((2, 3), np.float32)).shape == (2, 2)
    [row] = measure([tmp_path / "killed"], None, experiment, batch_sizes=(1,), num_rounds=1)
    assert row.num_parameters == 3 * 4 + 4 + 4 * 2 + 2  # without the linear map of the features
    # A student is compressed without its teacher.
    chain = compress(
        tmp_path / "killed",
        MagnitudePruning(sparsity=0.5),
        tmp_path / "chain",
        fine_tuning=None,
        experiment=experiment,
        console=QUIET,
    )
    assert methods_of(RunFolder(chain.folder)) == ["magnitude_pruning"]


def test_a_compressed_run_is_compared_with_its_parent(parent, pruned):
    [rows] = compare_runs(parent, pruned.folder).differences
    assert {row.metric for row in rows} >= {"accuracy", "loss"}


@pytest.mark.parametrize(
    ("plan", "how", "message"),
    [
        (MagnitudePruning(sparsity=0.5), {"fine_tuning": {"depth": 3}}, "has no option depth; it has width"),
        (MagnitudePruning(sparsity=0.5), {"student": experiment}, "student= is for a distillation"),
        (Distillation(), {"fine_tuning": None}, "learns nothing"),
        (Distillation(), {"student": other_inputs}, "does not read the features that the teacher"),
        (Distillation(features=(("Dense_7", "Dense_0"),)), {}, "student has no module Dense_7"),
        (MagnitudePruning(sparsity=0.5, kernels=("conv",)), {}, "conv"),
    ],
)
def test_a_mistake_is_refused_and_leaves_no_folder(parent, tmp_path, plan, how, message):
    with pytest.raises(UserError, match=message) as caught:
        compress(parent, plan, tmp_path / "new", **{"experiment": experiment, "console": QUIET, **how})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_not_finished_or_not_compressed_is_refused(parent, tmp_path):
    with pytest.raises(UserError, match="does not hold a run"):
        compress(tmp_path, MagnitudePruning(sparsity=0.5))
    with pytest.raises(UserError, match="is not a compressed run"):
        resume(parent, experiment=experiment)


def test_a_model_without_half_of_its_channels_is_quantised_and_others_are_one_line(parent, tmp_path):
    how = {"fine_tuning": None, "experiment": experiment, "console": QUIET}
    half = functools.partial(structured_pruning.plan, flops_fraction=0.6)
    compress(parent, half, tmp_path / "half", **how)
    all_layers = functools.partial(calibrate, float_layers=())
    made = compress(tmp_path / "half", all_layers, tmp_path / "both", **how)
    records = json.loads((made.folder / "run.json").read_text())["options"]["compression"]
    methods = [record["method"] for record in records if record["method"] != "no_training"]
    assert methods == ["structured_pruning", "quantization"]
    # As if the layer were scanned: its scales do not have the shape that it needs.
    wrong = Quantization(layers={"Dense_1": "dynamic"}, stacked={"Dense_1": 1})
    with pytest.raises(UserError, match="do not work together: structured_pruning, then quantization"):
        compress(tmp_path / "half", wrong, tmp_path / "new", **how)
    assert not (tmp_path / "new").exists()
