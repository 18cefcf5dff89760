"""`python -m dl compress`: a new run, one table, and one line for a mistake."""

import dataclasses

import pytest

from dl.cli.commands import main
from dl.cli.compress_command import gradual
from dl.inference.load import load_run
from tests.helpers import EXPERIMENT as SMALL

EXPERIMENT = '''
"""A network with one hidden layer."""
import numpy as np

from dl import Experiment, PositiveFloat, PositiveInt, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.models.mlp import MLP


def source(size, seed):
    features = np.random.default_rng(seed).normal(size=(size, 3)).astype(np.float32)
    return ArraySource({"features": features, "label": np.int32(features.sum(1) > 0)})


def experiment(width: PositiveInt = 40, num_epochs: PositiveInt = 2, learning_rate: PositiveFloat = 0.01):
    """Returns it."""
    data = ArraySplits("half", source(64, 0), {"validation": source(16, 1), "test": source(24, 2)})
    return Experiment(
        data=data,
        task=task.classification(MLP(hidden=(width, width), num_classes=2), input_name="features"),
        tx=optimizers.adam(learning_rate),
        num_steps=data.steps(num_epochs, 16),
        batch_size=16,
        eval_batch_size=8,
    )
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The file of an experiment, and a finished run of it."""
    from dl import Definition, train
    from dl.runs.find import find_experiment

    folder = tmp_path_factory.mktemp("compress")
    (folder / "net.py").write_text(EXPERIMENT)
    train(Definition(find_experiment(str(folder / "net.py"))), folder / "run")
    return folder / "run"


def call(*words):
    with pytest.raises(SystemExit) as ended:
        main(["compress", *map(str, words), "--no-keep-memory", "--no-compilation-cache"])
    return ended.value.code


METHODS = {
    "magnitude": ["--sparsity", "0.75", "--num-epochs", "1"],
    "structured": ["--flops-fraction", "0.6", "--num-epochs", "0"],
    "low-rank": ["--energy", "0.5", "--num-epochs", "1", "--learning-rate", "0.001"],
    "int8": [],
    "int4": ["--num-epochs", "1"],
    "distill": [
        "--options",
        "width=4",
        "num_epochs=1",
        "--temperature",
        "2",
        "--features",
        "Dense_0=Dense_0",
    ],
}


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name == "int8" else pytest.mark.slow) for name in METHODS]
)
def test_each_method_makes_a_run_and_a_table(run, tmp_path, capsys, method):
    file, folder = run.parent / "net.py", tmp_path / "new"
    words = [run, "--method", method, *METHODS[method], "--workdir", folder, "--experiment", file]
    assert call(*words, "--markdown", tmp_path / "table.md") in (0, None)
    table = (tmp_path / "table.md").read_text()
    assert "| parent | " in table
    assert f"| {method} | " in table
    assert f"python -m dl compare {run} {folder}" in capsys.readouterr().out
    assert load_run(folder, str(file)).metrics["test"]["accuracy"] >= 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "is not a compressed run; say how to compress it with --method"),
        (["--method", "distill", "--sparsity", "0.5"], "--sparsity is for --method magnitude"),
        (["--method", "int8", "--learning-rate", "0.1"], "give --num-epochs above 0"),
        (["--method", "magnitude", "--sparsity", "1.5"], "sparsity"),
        (["--method", "magnitude", "--options", "depth=3"], "'depth=3' is not NAME=VALUE of an option"),
        (["--method", "magnitude", "--options", "width"], "'width' is not NAME=VALUE of an option"),
        (["--method", "distill", "--features", "Dense_0"], "'Dense_0' is not a pair"),
        (["--method", "distill", "--num-epochs", "0"], "learns nothing"),
        (["--method", "magnitude", "--student", "mnist_cnn"], "--student is for --method distill"),
        (["--method", "zip"], "must be one of magnitude, structured, low-rank, int8, int4, distill"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, capsys, words, message):
    folder = tmp_path / "new"
    assert call(run, *words, "--workdir", folder, "--experiment", run.parent / "net.py") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not folder.exists()


def test_the_folder_of_no_run_is_one_line(tmp_path, capsys):
    assert call(tmp_path, "--method", "int8") == 2
    assert "does not hold a run" in capsys.readouterr().err


def test_a_gradual_pruning_ends_at_half_of_the_steps():
    for num_steps in (1, 7, 40, 1000):
        made = gradual(0.8, dataclasses.replace(SMALL, num_steps=num_steps))
        assert made.sparsity_at(num_steps // 2 + made.every) == pytest.approx(0.8)
        assert made.every * made.num_prunings <= num_steps // 2
