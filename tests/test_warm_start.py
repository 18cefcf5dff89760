"""Starts from elsewhere: what another experiment ended with, and weights from files."""

import json
import os
import shutil
import signal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.models.mlp import MLP
from dl.models.mobilenet import MobileNetV2
from dl.models.transfer import WithHead
from dl.models.weights import names as torch_names
from dl.models.weights.pretrained import pretrained
from dl.runs.console import Console
from dl.runs.digest import tree_digest
from dl.runs.provenance import code_of, module_name
from dl.training import loop
from dl.training.signals import Stopped
from dl.warm_start import FromExperiment, check_fits, nested
from tests.helpers import run_in

MODEL = MLP(hidden=(4,), num_classes=2)


def source_of(size, seed):
    features = np.random.default_rng(seed).normal(size=(size, 3)).astype(np.float32)
    return ArraySource({"features": features, "label": np.int32(features.sum(1) > 0)})


def data_of(seed):
    return ArraySplits("halfspace", train=source_of(32, seed), evaluations={"validation": source_of(8, 9)})


def earlier(rate=0.1, data_seed=0, num_steps=12):
    return Experiment(
        data=data_of(data_seed),
        task=task.classification(MODEL, input_name="features"),
        tx=optimizers.sgd(rate),
        num_steps=num_steps,
        batch_size=8,
        eval_batch_size=8,
    )


def later(initial, seed=0, rate=0.0):
    """An experiment that keeps, at rate 0, what it started from."""
    return Experiment(
        data=data_of(5),
        task=task.classification(MODEL, input_name="features"),
        tx=optimizers.sgd(rate),
        num_steps=2,
        batch_size=8,
        eval_batch_size=8,
        warm_start=initial,
        seed=seed,
    )


class Signalling(Console):
    """Sends SIGTERM once the metrics of a step were recorded."""

    def __init__(self, step):
        super().__init__(is_quiet=True)
        self.is_live = True
        self._at = step

    def start(self, num_steps):
        pass

    def progress(self, step, description, figures):
        if step == self._at:
            os.kill(os.getpid(), signal.SIGTERM)


def train_in(folder, mesh, experiment, console=None):
    run = run_in(folder, {"a": 1}, "experiments.later", experiment)
    return loop.train_run(run, mesh, console=console).record


def inner_folders(root):
    return sorted(root.glob("test_warm_start-*"))


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory, mesh1):
    """A folder in which a run has started from an earlier one."""
    root = tmp_path_factory.mktemp("runs")
    train_in(root / "one", mesh1, later(FromExperiment(earlier)))
    return root


# Another experiment.


@pytest.mark.slow
def test_it_is_trained_once_and_the_next_who_asks_finds_it(root, mesh1):
    (inner,) = inner_folders(root)
    ended = read(inner / "result.json")
    assert ended["steps"] == 12
    assert read(root / "one" / "result.json")["params_digest"] == ended["params_digest"]
    two = train_in(root / "two", mesh1, later(FromExperiment(earlier), seed=1))
    assert two["params_digest"] == ended["params_digest"]
    assert inner_folders(root) == [inner]
    assert len(read(inner / "run.json")["starts"]) == 1


@pytest.mark.slow
def test_its_record_says_what_it_was(root):
    (inner,) = inner_folders(root)
    record = read(inner / "run.json")
    assert record["options"] == {"rate": 0.1, "data_seed": 0, "num_steps": 12}
    assert (record["experiment"], record["code"]) == (module_name(earlier), code_of(earlier))


@pytest.mark.slow
def test_a_finished_run_does_not_ask_again(root, mesh1):
    def fail(context):
        raise AssertionError("asked")

    assert train_in(root / "one", mesh1, later(fail))["steps"] == 2


def test_other_options_and_other_data_are_another_run(tmp_path, mesh1, monkeypatch):
    """The name of the folder alone is under test: nothing is trained."""
    asked = []
    whole = loop.train_run

    def training(run, mesh, **how):
        if run.folder == tmp_path / "outer":
            return whole(run, mesh, **how)
        asked.append(run.folder)
        raise InterruptedError

    monkeypatch.setattr(loop, "train_run", training)

    def ask(*start):
        with pytest.raises(InterruptedError):
            training(run_in(tmp_path / "outer", experiment=later(FromExperiment(*start))), mesh1)

    for options in ({}, {"rate": 0.1}, {"rate": 0.2}, {"data_seed": 1}):
        ask(earlier, options)
    ask(lambda rate=0.1, data_seed=0, num_steps=12: earlier(), {"data_seed": 0})
    monkeypatch.setattr("dl.runs.definition.code_of", lambda experiment_fn: "changed")
    ask(earlier)
    assert asked[0] == asked[1] == asked[4]
    assert len(set(asked)) == 4
    assert {folder.parent for folder in asked} == {tmp_path}


@pytest.mark.slow
def test_stopped_on_the_way_it_goes_on_when_the_same_is_asked_again(root, tmp_path, mesh1, monkeypatch):
    whole = loop.train_run

    def stopping(run, mesh, **how):
        return whole(run, mesh, console=Signalling(2))

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_run", stopping)
        with pytest.raises(Stopped, match="saved at step [2-4] of 12; to resume: the same command again"):
            train_in(tmp_path / "outer", mesh1, later(FromExperiment(earlier)))
    assert not (tmp_path / "outer").exists()
    result = train_in(tmp_path / "outer", mesh1, later(FromExperiment(earlier)))
    (inner,) = inner_folders(tmp_path)
    assert len(read(inner / "run.json")["starts"]) == 2
    assert result["params_digest"] == read(root / "one" / "result.json")["params_digest"]


@pytest.mark.slow
def test_what_a_run_started_from_is_recorded_and_another_start_is_refused(root, tmp_path, mesh1):
    params = {"Dense_1": {"kernel": np.ones((4, 2), np.float32)}}

    def start(context):
        return {"params": params}

    def other(context):
        return {"params": jax.tree.map(lambda leaf: 2 * leaf, params)}

    folder = tmp_path / "outer"
    with pytest.raises(Stopped):
        train_in(folder, mesh1, later(start), Signalling(1))
    assert read(folder / "run.json")["initial"] == tree_digest({"params": params})
    with pytest.raises(UserError, match="holds another run .*initial: .* there, .* here"):
        train_in(folder, mesh1, later(other))
    assert train_in(folder, mesh1, later(start))["steps"] == 2


def test_a_run_whose_checkpoints_are_gone_says_so(root, tmp_path, mesh1):
    (inner,) = inner_folders(root)
    shutil.copytree(inner, tmp_path / inner.name)
    shutil.rmtree(tmp_path / inner.name / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint to read the parameters from"):
        train_in(tmp_path / "outer", mesh1, later(FromExperiment(earlier)))


# Parts of a model.


def test_nested_moves_the_modules_that_are_not_dropped():
    variables = {"params": {"stem": {"kernel": 1}, "head": {"bias": 2}}, "batch_stats": {"stem": {"mean": 3}}}
    assert nested(variables, "backbone", drop=["head"]) == {
        "params": {"backbone": {"stem": {"kernel": 1}}},
        "batch_stats": {"backbone": {"stem": {"mean": 3}}},
    }
    assert nested(variables, "b")["params"]["b"] == variables["params"]


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"params": {"stem": {"scale": np.ones(3)}}}, "params/stem/scale, which the model does not have"),
        (
            {"params": {"stem": {"bias": np.ones(4)}}},
            r"params/stem/bias with shape \(4,\), and the model has it with shape",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused_by_name(start, message):
    shapes = {"params": {"stem": {"bias": jax.ShapeDtypeStruct((3,), jnp.float32)}}}
    check_fits({"params": {"stem": {"bias": np.ones(3)}}}, shapes)
    with pytest.raises(UserError, match=message):
        check_fits(start, shapes)


# Files.


def mobilenet_tensors():
    """Returns random tensors named and shaped as those of Hugging Face's MobileNetV2 with one block."""
    shapes = {"classifier.weight": (5, 16), "classifier.bias": (5,)}
    for name, shape in {
        "mobilenet_v2.conv_stem.first_conv": (8, 3, 3, 3),
        "mobilenet_v2.conv_stem.conv_3x3": (8, 1, 3, 3),
        "mobilenet_v2.conv_stem.reduce_1x1": (8, 8, 1, 1),
        "mobilenet_v2.conv_1x1": (16, 8, 1, 1),
    }.items():
        shapes[f"{name}.convolution.weight"] = shape
        shapes[f"{name}.normalization.num_batches_tracked"] = ()
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.normalization.{leaf}"] = shape[:1]
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def file(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="needs the extra 'weights'")
    numpy.save_file(mobilenet_tensors(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def shapes_of(backbone_classes, mesh):
    backbone = MobileNetV2(backbone_classes, width=0.1, stages=((1, 16, 1, 1),), features=16)
    model: nn.Module = WithHead(backbone, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return shapes


@pytest.mark.parametrize("backbone_classes", [None, 7])
def test_a_backbone_starts_from_a_file_and_every_head_from_the_seed(file, mesh1, backbone_classes):
    shapes = shapes_of(backbone_classes, mesh1)
    start = pretrained(file, torch_names.mobilenet_v2, "backbone", skip=("head",))(shapes)
    check_fits(start, shapes)
    assert set(start["params"]) == {"backbone"}
    assert set(start["params"]["backbone"]) == {"stem", "block0", "last"}
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(start))
    tensors = mobilenet_tensors()
    kernel_HWIO = start["params"]["backbone"]["stem"]["conv"]["kernel"]
    weight_OIHW = tensors["mobilenet_v2.conv_stem.first_conv.convolution.weight"]
    np.testing.assert_array_equal(kernel_HWIO, weight_OIHW.transpose(2, 3, 1, 0))
    means = tensors["mobilenet_v2.conv_1x1.normalization.running_mean"]
    np.testing.assert_array_equal(start["batch_stats"]["backbone"]["last"]["norm"]["mean"], means)
    backbone = {name: tree["backbone"] for name, tree in shapes.items()}
    wanted = {
        name: {m: leaves for m, leaves in tree.items() if m != "head"} for name, tree in backbone.items()
    }
    chex.assert_trees_all_equal_shapes_and_dtypes(nested(wanted, "backbone"), dict(start))


def test_a_submodule_that_the_model_lacks_is_refused_by_name(file, mesh1):
    initial = pretrained(file, torch_names.mobilenet_v2, "body", skip=("head",))
    with pytest.raises(UserError, match="under='body' is not a module of the model; .* backbone, head"):
        initial(shapes_of(None, mesh1))
