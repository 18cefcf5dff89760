import contextlib
import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import optimizers, task
from dl.data.images.decoding import resized
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.diagnostics.layers import experiment_layers
from dl.experiment import Experiment
from dl.flops import count_flops, input_scope
from dl.models.alexnet import alexnet
from dl.models.cnn import CNN
from dl.models.inception import inception_v3
from dl.models.mobilenet import MobileNetV2, mobilenet_v2
from dl.models.resnet import resnet18, resnet34, resnet50, resnet101
from dl.models.vgg import vgg16
from dl.models.vit import vit_b16
from dl.report import write_report
from dl.runs.console import Console
from dl.sharding import make_mesh
from dl.system.onednn import native_kernels
from dl.training.loop import train_run
from tests.helpers import run_in


def test_a_matrix_product():
    assert count_flops(jnp.dot, jnp.zeros((3, 5)), jnp.zeros((5, 7))) == 2 * 3 * 5 * 7


def test_a_batched_product_and_a_scan_body_count_as_often_as_they_run():
    def repeated(x):
        return jax.lax.scan(lambda c, _: (jnp.einsum("bij,bjk->bik", c, c), None), x, length=6)[0]

    assert count_flops(repeated, jnp.zeros((2, 4, 4))) == 6 * 2 * 2 * 4**3


@pytest.mark.parametrize("strides", [1, 2])
def test_a_valid_convolution(strides):
    conv = nn.Conv(8, (3, 3), strides, padding="VALID")
    x = jnp.zeros((2, 9, 9, 5))
    side = (9 - 3) // strides + 1
    params = jax.eval_shape(conv.init, jax.random.key(0), x)
    assert count_flops(conv.apply, params, x) == 2 * 2 * side**2 * 8 * 9 * 5


def test_products_with_padding_count_in_published_tables_and_do_no_work():
    conv = nn.Conv(1, (3, 3), padding="SAME")
    x = jnp.zeros((1, 4, 4, 1))
    params = jax.eval_shape(conv.init, jax.random.key(0), x)
    assert count_flops(conv.apply, params, x) == 2 * (3 * 4) ** 2
    assert count_flops(conv.apply, params, x, padding=False) == 2 * (3 * 4 - 2) ** 2  # 10 taps on each axis


@pytest.mark.parametrize("strides", [1, 2])
def test_the_gradients_of_a_convolution_count_twice_its_products(strides):
    x, params = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))

    def conv(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, params, (strides,) * 2, "SAME", dimension_numbers=numbers)

    for padding in (True, False):
        forward = count_flops(conv, params, x, padding=padding)
        both = count_flops(jax.grad(lambda p, x: conv(p, x).sum(), (0, 1)), params, x, padding=padding)
        assert both == pytest.approx(3 * forward, rel=0.07 if padding else 0)


# Billions of multiply-adds for one image: Sandler et al. 2018, table 4, and torchvision's table of weights.
PUBLISHED = [
    (mobilenet_v2, 224, 0.300),
    (resnet18, 224, 1.81),
    (resnet34, 224, 3.66),
    (resnet50, 224, 4.09),
    (resnet101, 224, 7.80),
    (vgg16, 224, 15.47),
    (alexnet, 224, 0.71),
    (inception_v3, 299, 5.71),
    (vit_b16, 224, 17.56),
]


@pytest.mark.slow
@pytest.mark.parametrize(("function", "side", "published"), PUBLISHED)
def test_the_counts_of_known_networks_are_the_published_ones(function, side, published):
    model, x = function(), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert count_flops(model.apply, variables, x) / 2e9 == pytest.approx(published, rel=0.01)


def test_what_prepares_the_input_is_no_part_of_the_model():
    def fn(x, w):
        with input_scope():
            x = x @ w
        return x @ w

    x, w = jnp.zeros((3, 5)), jnp.zeros((5, 5))
    assert count_flops(fn, x, w) == 2 * 3 * 5 * 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a small depthwise network on images that are resized by matrix products."""
    points = ArraySource(
        {"image": np.zeros((16, 9, 9, 3), np.uint8), "label": np.arange(16, dtype=np.int32) % 3}
    )
    model = MobileNetV2(3, width=0.1, stages=((1, 16, 1, 1),), features=16)
    experiment = Experiment(
        data=ArraySplits("points", train=points, evaluations={"test": points}),
        preprocess=resized(16, 16),
        task=task.classification(model),
        tx=optimizers.sgd(0.1),
        num_steps=1,
        batch_size=8,
    )
    run = run_in(tmp_path_factory.mktemp("flops") / "run", name="experiments.flops", experiment=experiment)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = train_run(run, make_mesh({"data": 1}), console=Console()).record
    return experiment, run, result, printed.getvalue()


@pytest.mark.slow
def test_introduction_result_layers_and_report_state_the_same_counts(trained):
    experiment, run, result, printed = trained
    layers = experiment_layers(experiment)
    for convention, field in (("", "flops"), ("_without_padding", "flops_without_padding")):
        total = sum(getattr(layer, field) for layer in layers)
        assert result[f"forward_flops_per_example{convention}"] == total > 0
        assert 2 * total < result[f"train_flops_per_example{convention}"] < 3.1 * total
    assert result["forward_flops_per_example"] > result["forward_flops_per_example_without_padding"]
    assert "without padding)" in printed
    write_report(run.folder, run.report_path, experiment)
    page = run.report_path.read_text()
    assert f"{result['forward_flops_per_example']:,}" in page
    assert page.count(f"{result['forward_flops_per_example_without_padding']:,}") >= 2


def test_a_grouped_convolution():
    conv = nn.Conv(6, (1, 1), feature_group_count=3)
    x = jnp.zeros((1, 5, 5, 6))
    params = jax.eval_shape(conv.init, jax.random.key(0), x)
    assert count_flops(conv.apply, params, x) == 2 * 25 * 6 * 2


def test_the_count_is_within_five_percent_of_the_compilers():
    model = CNN(channels=(32,), hidden=(128,), num_classes=10)
    x = jnp.zeros((8, 28, 28, 1))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    ours = count_flops(model.apply, params, x, padding=False)
    with native_kernels():  # the compiler cannot see into a call of another library
        theirs = jax.jit(model.apply).lower(params, x).cost_analysis()["flops"]
    assert ours == pytest.approx(theirs, rel=0.05)
