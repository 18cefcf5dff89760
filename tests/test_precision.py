"""The precision and clipping of a run: what is computed in which dtype, and what is recorded."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dl import optimizers, task
from dl.cli.main import RunOptions, main
from dl.cli.options import parse
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.errors import UserError
from dl.experiment import Experiment
from dl.gradients import mean_gradient
from dl.inference.load import rebuild
from dl.models.airbench import Airbench
from dl.models.cnn import CNN
from dl.models.gpt2 import GPT2
from dl.models.mlp import MLP, ResidualMLP
from dl.models.mobilenet import MobileNetV2
from dl.models.resnet import ResNet
from dl.models.transfer import WithHead
from dl.models.vit import ViT
from dl.precision import BFLOAT16, FLOAT16, computing_in
from dl.runs.predictions import outputs_fn
from dl.training.run_options import with_run_options
from tests.helpers import quick_jit

MODELS = {
    "mlp": MLP((4,), 3, dropout=0.1),
    "residual": ResidualMLP(4, 4, 2, 3, 0.1, 0.1, 0.1),
    "cnn": CNN((4,), (4,), 3),
    "resnet": ResNet(3, (1,), width=4),
    "mobilenet": MobileNetV2(3, width=0.1, stages=((1, 16, 1, 1), (6, 16, 1, 1)), features=16),
    "vit": ViT(3, 8, 1, 2, 8),
    "airbench": Airbench(3, (4,)),
    "head": WithHead(MLP((4,), 4), 3, hidden=(4,)),
}
BATCH = {
    "image": jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32),
    "label": jax.ShapeDtypeStruct((2,), jnp.int32),
    "mask": jax.ShapeDtypeStruct((2,), jnp.bool_),
}


def products(jaxpr):
    """Yields the dtypes of the operands of every product and convolution."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield {v.aval.dtype.name for v in equation.invars}
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("policy", [BFLOAT16, FLOAT16], ids=["bfloat16", "float16"])
def test_products_are_in_the_precision_and_all_that_is_kept_in_float32(name, policy):
    model = MODELS[name]
    variables = jax.eval_shape(model.init, jax.random.key(0), BATCH["image"])
    state = {collection: tree for collection, tree in variables.items() if collection != "params"}
    lowered = mean_gradient(computing_in(policy, task.classification(model)).loss)
    traced = jax.jit(lowered).trace(variables["params"], state, BATCH, jax.random.key(0))
    wanted = jnp.dtype(policy.compute).name
    used = {dtype for dtypes in products(traced.jaxpr.jaxpr) for dtype in dtypes}
    # The scores of attention come in float32, as JAX has it, and so do their gradients.
    assert used == ({wanted, "float32"} if name == "vit" else {wanted})
    assert {leaf.dtype.name for leaf in jax.tree.leaves(traced.out_info)} == {"float32"}


def test_targets_and_penalties_are_not_rounded():
    model = MLP((), 1)
    inputs = {**BATCH, "image": jnp.zeros((1, 2)), "target": jnp.float32([1000.3]), "mask": jnp.array([True])}
    params = model.init(jax.random.key(0), inputs["image"])["params"]
    loss, _ = computing_in(BFLOAT16, task.regression(model)).loss(params, {}, inputs, None)
    assert float(loss.compute()) == pytest.approx(1000.3**2, rel=1e-6)


def small(clip_norm=None, **options):
    """An experiment; what it is called with comes from the options of a run."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (24, 4, 4, 1)).astype(np.uint8)
    points = ArraySource({"image": images, "label": (images.mean((1, 2, 3)) > 127).astype(np.int32)})
    model = MLP((8,), 2)
    experiment = Experiment(
        data=ArraySplits("points", train=points, evaluations={"test": points}),
        task=task.classification(model),
        tx=optimizers.sgd(1.0),
        num_steps=12,
        batch_size=8,
    )
    return with_run_options(experiment, {"clip_norm": clip_norm, **options})


def test_clipping_comes_before_the_optimizer_and_leaves_its_rate_in_sight():
    tx = small(clip_norm=0.5).tx
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, state = tx.update(gradient, tx.init(gradient), gradient)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.3, -0.4], rtol=1e-6)
    assert float(optax.tree_utils.tree_get_all_with_path(state, "learning_rate")[0][1]) == 1.0


@pytest.mark.slow
def test_predictions_are_made_in_the_precision_of_the_measurements():
    plain, lowered = small(), small(precision="bfloat16")
    batch = {name: values[:8] for name, values in plain.data.train[np.arange(24)].items()}
    variables = plain.init(jax.random.key(0), batch)
    exact, rounded = (outputs_fn(experiment)(variables, batch) for experiment in (plain, lowered))
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.05
    assert small(precision="float16").loss_scale is not None
    assert lowered.loss_scale is plain.loss_scale is None


@pytest.mark.parametrize(
    "options", [{"precision": "int8"}, {"precision": None}, {"clip_norm": 0.0}, {"clip_norm": "big"}]
)
def test_hostile_options_are_one_line(options):
    with pytest.raises(UserError, match=next(iter(options))) as caught:
        small(**options)
    assert "\n" not in str(caught.value)


EXPERIMENT = '''
"""Points."""
import numpy as np
from dl import Experiment, main, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.models.mlp import MLP


def experiment(rate: float = 0.1) -> Experiment:
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 1)).astype(np.uint8)
    points = ArraySource({"image": images, "label": np.arange(24, dtype=np.int32) % 2})
    model = MLP((8,), 2)
    return Experiment(
        data=ArraySplits("points", train=points, evaluations={"test": points}),
        task=task.classification(model), tx=optimizers.sgd(rate), num_steps=12,
        batch_size=8,
    )
'''


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run in bfloat16 with clipping and a profile, by the command line."""
    import importlib.util

    folder = tmp_path_factory.mktemp("precision")
    (folder / "points.py").write_text(EXPERIMENT)
    spec = importlib.util.spec_from_file_location("points", folder / "points.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*argv):
        main(module.experiment, ["--workdir", str(folder / "run"), "--mesh", "data=1", "--no-report", *argv])

    run("--precision", "bfloat16", "--clip-norm", "0.5", "--profile")
    return folder, run


@pytest.mark.slow
def test_a_run_records_precision_and_clipping_and_profiles_its_steps(finished):
    folder, _ = finished
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["options"] == {"precision": "bfloat16", "clip_norm": 0.5, "rate": 0.1}
    assert record["defaults"] == {"precision": "float32", "clip_norm": None, "rate": 0.1, "num_seeds": 1}
    assert list((folder / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "precision"),
        (("--precision", "bfloat16", "--clip-norm", "1"), "clip_norm: 0.5 there, 1.0 here"),
        (("--precision", "float16", "--clip-norm", "0.5"), 'precision: "bfloat16" there, "float16" here'),
    ],
)
def test_resuming_with_another_precision_or_clipping_is_refused(argv, message, finished, capsys):
    _, run = finished
    with pytest.raises(SystemExit) as exit_:
        run(*argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_rebuilt_with_its_precision_and_clipping(finished):
    folder, _ = finished
    rebuilt = rebuild(folder / "run", str(folder / "points.py")).experiment
    assert rebuilt.task.predict is not None  # in bfloat16
    gradient = jnp.float32([3.0, 4.0])
    updates, _ = rebuilt.tx.update(gradient, rebuilt.tx.init(gradient), gradient)
    assert float(jnp.linalg.norm(updates)) == pytest.approx(0.05)


def with_own(clip_norm: float = 3.0, precision: int = 2):
    """An experiment that has options of those names already."""


def test_an_experiments_own_option_of_that_name_stays_its_own():
    options, run = parse(with_own, RunOptions, ["--clip-norm", "7", "--precision", "4"], "prog")
    assert options == {"clip_norm": 7.0, "precision": 4}
    assert (run.clip_norm, run.precision) == (None, "float32")


@pytest.mark.parametrize(
    "argv", [["--precision", "int8"], ["--clip-norm", "0"], ["--clip-norm", "nan"], ["--clip-norm", "-1"]]
)
def test_a_precision_or_norm_that_cannot_be_is_refused(argv):
    with pytest.raises(UserError, match=argv[0]):
        parse(lambda: None, RunOptions, argv, "prog")


@pytest.mark.slow
def test_a_decoder_keeps_its_cache_in_the_precision_and_writes_as_it_reads():
    model = GPT2(vocab_size=11, max_length=8, dim=16, num_layers=2, num_heads=2)
    learned = computing_in(BFLOAT16, task.language_model(model))
    tokens = jnp.asarray([[1, 2, 3, 4], [5, 6, 7, 8]])
    variables = model.init(jax.random.key(0), tokens)
    cache, is_text = learned.decoder.empty(2, 8), jnp.ones((2, 4), bool)
    extend = quick_jit(learned.decoder.extend)
    logits, extended = extend(variables, cache, tokens, is_text)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(extended.layers)}
    assert kinds == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(lambda leaf: leaf.dtype, extended) == jax.tree.map(lambda leaf: leaf.dtype, cache)
    assert logits.dtype == jnp.float32
    batch = {"tokens": tokens, "mask": jnp.ones(2, bool), "index": jnp.arange(2)}
    np.testing.assert_allclose(logits, learned.predict(variables, batch)[:, -1], atol=0.03)
