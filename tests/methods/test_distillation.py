"""Distillation: the loss is the paper's, the teacher never changes, and no checkpoint holds it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from dl import FromExperiment, task
from dl.errors import UserError
from dl.freezing import CONSTANTS
from dl.gradients import accumulated_gradient
from dl.methods.compression import as_record
from dl.methods.distillation import MAPS, Distillation, from_teacher, with_teacher
from dl.models.gpt2 import GPT2
from dl.models.mlp import MLP
from dl.runs.console import Console
from dl.sharding import make_mesh
from dl.training.loop import train
from dl.training.population import consecutive
from dl.training.run_options import with_run_options
from tests.helpers import DATA, EXPERIMENT, SignallingConsole, train_in

TEACHER = task.classification(MLP(hidden=(16, 12), num_classes=2), input_name="features")
STUDENT = task.classification(MLP(hidden=(4,), num_classes=2), input_name="features")
HOW = Distillation(temperature=3.0, alpha=0.7)
FEATURES = Distillation(alpha=0.5, features=(("Dense_0", "Dense_1"),), feature_weight=0.5)


def batch_of(size=6):
    rows = DATA.train[np.arange(size)]
    return {**rows, "index": np.arange(size), "mask": np.arange(size) < size - 1}


BATCH = batch_of()
QUIET = Console(is_quiet=True)


@pytest.fixture(scope="module")
def teacher():
    return TEACHER.init(jax.random.key(5), BATCH)


def distilled(teacher, how=HOW, **changes):
    made = dataclasses.replace(EXPERIMENT, task=with_teacher(STUDENT, TEACHER, how), **changes)
    return dataclasses.replace(made, warm_start=from_teacher(teacher))


def losses(student, variables, batch=BATCH, key=None):
    key = jax.random.key(0) if key is None else key
    state = {name: tree for name, tree in variables.items() if name != "params"}
    return student.loss(variables["params"], state, batch, key)


def test_the_loss_is_the_formula_of_the_paper(teacher):
    student = with_teacher(STUDENT, TEACHER, HOW)
    variables = student.init(jax.random.key(0), BATCH) | from_teacher(teacher)
    mean, aux = losses(student, variables)
    z = np.asarray(STUDENT.predict({"params": variables["params"]}, BATCH), np.float64)[:5]
    v = np.asarray(TEACHER.predict(teacher, BATCH), np.float64)[:5]
    log_p, log_q = log_softmax(v / 3, -1), log_softmax(z / 3, -1)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
    hard = -log_softmax(z, -1)[np.arange(5), BATCH["label"][:5]].mean()
    np.testing.assert_allclose(mean.compute(), 0.7 * 9 * kl + 0.3 * hard, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["soft_loss"].compute(), kl, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["loss"].compute(), hard, rtol=1e-5)
    assert aux.metrics["agreement"].compute() == np.mean(z.argmax(-1) == v.argmax(-1))


def test_at_a_high_temperature_the_gradient_is_that_of_the_logits():
    # Hinton et al. 2015, eq. 4: for zero-mean logits, T² dKL/dz tends to (z - v) / C.
    z, v = jnp.array([[1.0, -2.0, 1.0]]), jnp.array([[0.5, 0.5, -1.0]])
    model = task.Model(
        lambda key, x: {"params": {"z": z}}, lambda params, state, x, key: (params["z"], state)
    )
    student = with_teacher(
        task.classification(model, input_name="x"),
        lambda batch: v,
        Distillation(temperature=1000, alpha=1),
    )
    batch = {
        "x": np.zeros((1, 1)),
        "label": np.zeros(1, int),
        "index": np.zeros(1, int),
        "mask": np.ones(1, bool),
    }
    gradient = jax.grad(lambda z: student.loss({"z": z}, {}, batch, jax.random.key(0))[0].compute())(z)
    np.testing.assert_allclose(gradient, (z - v) / 3, rtol=1e-2)


def test_features_are_matched_through_a_linear_map(teacher):
    student = with_teacher(STUDENT, TEACHER, FEATURES)
    variables = student.init(jax.random.key(0), BATCH) | from_teacher(teacher)
    kernel = variables["params"][MAPS]["0"]
    assert kernel.shape == (4, 12)
    plain = with_teacher(STUDENT, TEACHER, dataclasses.replace(FEATURES, features=()))
    own, its = jax.device_get((variables["params"]["Dense_0"], teacher["params"]))
    h = BATCH["features"] @ own["kernel"] + own["bias"]
    x = np.maximum(BATCH["features"] @ its["Dense_0"]["kernel"] + its["Dense_0"]["bias"], 0)
    g = x @ its["Dense_1"]["kernel"] + its["Dense_1"]["bias"]
    expected = 0.5 * np.square(h @ np.asarray(kernel) - g)[:5].mean()
    found = losses(student, variables)[0].compute() - losses(plain, variables)[0].compute()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert student.predict(variables, BATCH).shape == (6, 2)
    assert MAPS not in FEATURES.stored(variables)["params"]


def test_evaluation_is_that_of_the_student_alone(teacher):
    student = with_teacher(STUDENT, TEACHER, HOW)
    variables = student.init(jax.random.key(0), BATCH)
    state = {CONSTANTS: variables[CONSTANTS]}
    (mean, aux), (own, _) = (
        t.loss(variables["params"], s, BATCH, None) for t, s in ((student, state), (STUDENT, {}))
    )
    assert mean.compute() == own.compute()
    assert sorted(aux.metrics) == ["accuracy", "loss"]


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits_and_no_file_holds_the_teacher(tmp_path, teacher):
    experiment = distilled(teacher, FEATURES, num_steps=8, augment=flipped)
    whole = train(experiment, tmp_path / "whole", console=QUIET)
    with pytest.raises(BaseException, match="stopped by SIGTERM"):
        train_in(tmp_path / "killed", make_mesh(), experiment, console=SignallingConsole(3))
    other = distilled(jax.tree.map(lambda leaf: leaf + 1, teacher), FEATURES, num_steps=8, augment=flipped)
    with pytest.raises(UserError, match=r"holds another run \(initial"):
        train_in(tmp_path / "killed", make_mesh(), other)
    resumed = train_in(tmp_path / "killed", make_mesh(), experiment)
    assert resumed["params_digest"] == whole.record["params_digest"]
    assert CONSTANTS not in whole.variables
    files = [path for path in (tmp_path / "whole" / "checkpoints").rglob("*") if path.is_file()]
    assert any(MAPS.encode() in path.read_bytes() for path in files)  # the names are in there
    assert not any(CONSTANTS.encode() in path.read_bytes() for path in files)


@pytest.mark.slow
def test_the_teacher_is_trained_first():
    def teacher_experiment():
        return dataclasses.replace(EXPERIMENT, task=TEACHER, num_steps=3)

    experiment = distilled({}, num_steps=3)
    first = dataclasses.replace(experiment, warm_start=from_teacher(FromExperiment(teacher_experiment)))
    trained = train(teacher_experiment(), console=QUIET).variables
    known = dataclasses.replace(experiment, warm_start=from_teacher(trained))
    digests = {train(made, console=QUIET).record["params_digest"] for made in (first, known)}
    assert len(digests) == 1


def test_a_student_of_zeros_is_refused():
    with pytest.raises(UserError, match="reads constants/teacher/params/.*from_teacher"):
        train(distilled({}, num_steps=1), console=QUIET)
    with pytest.raises(UserError, match="reads constants/teacher/params/"):
        train(dataclasses.replace(distilled({}), warm_start=None), console=QUIET)


@pytest.mark.slow
def test_seeds_at_the_same_time_share_the_teacher(teacher):
    experiment = distilled(teacher, num_steps=4)
    both = train(experiment, population=consecutive(0, 2), console=QUIET)
    alone = train(dataclasses.replace(experiment, seed=1), console=QUIET)
    second = jax.tree.map(lambda leaf: leaf[1], both.variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), second, alone.variables)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"precision": "bfloat16"}, {"precision": "float16"}, {"reduction": "exact"}, {"clip_norm": 1.0}],
)
def test_the_options_of_a_run_hold_for_a_student(teacher, options):
    made = with_run_options(distilled(teacher, FEATURES, num_steps=2), options)
    assert train(made, console=QUIET).record["steps"] == 2


@pytest.mark.slow
def test_micro_batches_have_the_same_loss(teacher):
    at_once = distilled(teacher, FEATURES, num_steps=2)
    in_parts = dataclasses.replace(at_once, grad_fn=accumulated_gradient(4))
    one, other = (train(made, console=QUIET).variables for made in (at_once, in_parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


def test_tokens_that_do_not_count_are_not_distilled():
    gpt = GPT2(vocab_size=11, max_length=6, dim=8, num_layers=1, num_heads=2)
    learned = task.language_model(gpt, padding_id=0)
    tokens_BT = np.random.default_rng(0).integers(1, 11, (3, 6)).astype(np.int32)
    tokens_BT[1, 4:] = 0
    batch = {"tokens": tokens_BT, "index": np.arange(3), "mask": np.array([True, True, False])}
    random = np.random.default_rng(1)
    teacher_BTV = random.normal(size=(3, 6, 11)).astype(np.float32)
    student = with_teacher(learned, lambda batch: teacher_BTV, Distillation(temperature=2, alpha=1))
    variables = student.init(jax.random.key(0), batch)
    mean, aux = student.loss(variables["params"], {}, batch, jax.random.key(0))
    z_BTV = np.asarray(learned.predict(variables, batch), np.float64)
    log_p, log_q = log_softmax(teacher_BTV / 2, -1), log_softmax(z_BTV / 2, -1)
    kl_BT = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    counted = [(0, t) for t in range(5)] + [(1, t) for t in range(3)]
    np.testing.assert_allclose(mean.compute(), 4 * np.mean([kl_BT[at] for at in counted]), rtol=1e-5)
    assert mean.count == aux.metrics["soft_loss"].count == len(counted)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"temperature": 0}, "temperature=0"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"features": ("Dense_0",)}, "must be pairs of paths"),
    ],
)
def test_a_configuration_out_of_range_is_refused(how, message):
    with pytest.raises(UserError, match=message):
        Distillation(**how)


@pytest.mark.parametrize(
    ("teacher_task", "how", "message"),
    [
        (task.classification(MLP(hidden=(), num_classes=3), input_name="features"), HOW, "same classes"),
        (TEACHER, Distillation(features=(("Dense_9", "Dense_0"),)), "student has no module Dense_9"),
        (TEACHER, Distillation(features=(("Dense_0", "Dens_1"),)), "teacher has no module Dens_1.*Dense_1"),
        (lambda batch: 0, FEATURES, "features need the task of the teacher"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher_task, how, message):
    def use():
        student = with_teacher(STUDENT, teacher_task, how)
        losses(student, student.init(jax.random.key(0), BATCH))

    with pytest.raises(UserError, match=message):
        use()


def test_a_regression_is_refused():
    regression = task.regression(MLP(hidden=(), num_classes=1), input_name="features")
    with pytest.raises(UserError, match="a regression cannot be distilled"):
        with_teacher(regression, TEACHER, HOW)


def test_the_record_of_a_teacher_makes_its_task(teacher):
    def teacher_experiment(hidden: int = 8):
        return dataclasses.replace(EXPERIMENT, task=TEACHER if hidden == 16 else STUDENT)

    record = as_record(dataclasses.replace(HOW, teacher={"experiment": "t", "options": {"hidden": 16}}))
    assert record["teacher"] == {"experiment": "t", "options": {"hidden": 16}}
    assert "teacher_experiment" not in record
    made = with_run_options(EXPERIMENT, {"compression": record}, lambda name: teacher_experiment)
    variables = made.task.init(jax.random.key(0), BATCH)
    assert variables[CONSTANTS]["teacher"]["params"]["Dense_0"]["kernel"].shape == (3, 16)


def flipped(key, example):
    return {**example, "features": jnp.where(jax.random.bernoulli(key), 1, -1) * example["features"]}
