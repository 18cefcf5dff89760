import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl.errors import UserError
from dl.gradients import mean_gradient
from dl.models import airbench, inception, scaling
from dl.models.alexnet import AlexNet, alexnet
from dl.models.inception import Block, Inception, Layer, inception_v3
from dl.models.layers import DepthwiseConv
from dl.models.mobilenet import MobileNetV2, mobilenet_v2, round_channels
from dl.models.resnet import ResNet, resnet18, resnet34, resnet50, resnet101
from dl.models.transfer import WithHead
from dl.models.vgg import VGG, vgg11, vgg13, vgg16, vgg19
from dl.models.vit import ViT, vit_b16, vit_s16, vit_ti16
from dl.task import classification
from dl.training.state import num_params
from tests.helpers import quick_jit

# One block with a fork and a pooling, one that halves.
BLOCKS = (
    Block(((Layer(64),), (Layer(48), Layer(64, inception.FORK))), pool_channels=32),
    Block(((Layer(64, inception.THREE, strides=2),),)),
)
TINY = {
    "alexnet": (AlexNet(3, channels=(8,) * 5, hidden=(8,)), 64),
    "vgg": (VGG(3, num_convs=(1, 1, 2), channels=(4, 4, 4), hidden=(8,)), 16),
    "resnet": (ResNet(3, (1, 1), width=4), 32),
    "resnet-bottleneck": (ResNet(3, (1, 1), bottleneck=True, width=8, small_images=True), 16),
    "inception": (Inception(3, blocks=BLOCKS, width=1 / 16), 47),
    "mobilenet": (MobileNetV2(3, width=0.1, stages=((1, 16, 1, 1), (6, 16, 1, 1)), features=16), 16),
    "vit": (ViT(3, dim=8, num_layers=1, num_heads=2, patch_size=8, dropout=0.1), 16),
}
SIZED = [
    (alexnet, 224),
    (vgg16, 224),
    (resnet18, 224),
    (inception_v3, 299),
    (mobilenet_v2, 224),
    (vit_ti16, 224),
]


def random_variables(model, images):
    """Returns variables from NumPy: initialising each layer by its own function compiles for seconds."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" else 100
        return jnp.asarray(rng.normal(0, (2 / fan_in) ** 0.5, leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return dict(jax.tree_util.tree_map_with_path(draw, shapes))


def shapes_of(model, side, batch=1):
    """Returns the shapes of the variables and of the output, computed without memory."""
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return variables, jax.eval_shape(model.apply, variables, images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "side", "num_parameters", "num_statistics"),
    [
        # torchvision's tables of models state these; VGG also Simonyan & Zisserman 2015, table 2.
        (alexnet(), 224, 61_100_840, 0),
        (vgg11(), 224, 132_863_336, 0),
        (vgg13(), 224, 133_047_848, 0),
        (vgg16(), 224, 138_357_544, 0),
        (vgg19(), 224, 143_667_240, 0),
        (resnet18(), 224, 11_689_512, 9_600),
        (resnet34(), 224, 21_797_672, 17_024),
        (resnet50(), 224, 25_557_032, 53_120),
        (resnet101(), 224, 44_549_160, 105_344),
        # Keras counts both together: 23,851,784, 3,538,984 and, without a head, 2,257,984.
        (inception_v3(), 299, 23_851_784 - 34_432, 34_432),
        (mobilenet_v2(), 224, 3_538_984 - 34_112, 34_112),
        (mobilenet_v2(None), 224, 2_257_984 - 34_112, 34_112),
        # timm's table, and Touvron et al. 2021, table 1.
        (vit_ti16(), 224, 5_717_416, 0),
        (vit_s16(), 224, 22_050_664, 0),
        (vit_b16(), 224, 86_567_656, 0),
    ],
)
def test_parameter_counts_are_the_published_ones(model, side, num_parameters, num_statistics):
    variables, _ = shapes_of(model, side)
    assert num_params(variables["params"]) == num_parameters
    assert num_params(variables.get("batch_stats", {})) == num_statistics


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "side", "num_features"),
    [(*sized, width) for sized, width in zip(SIZED, (256, 512, 512, 2048, 1280, 192), strict=True)],
)
def test_without_a_head_the_features_come_out_and_nothing_else_changes(function, side, num_features):
    with_head, logits = shapes_of(function(7), side, batch=2)
    without, features = shapes_of(function(None), side, batch=2)
    assert logits.shape == (2, 7)
    assert features.shape == (2, num_features)
    backbone = {name: leaf for name, leaf in with_head["params"].items() if name != "head"}
    chex.assert_trees_all_equal(backbone, dict(without["params"]))


@pytest.mark.slow
@pytest.mark.parametrize(("function", "side"), SIZED)
def test_the_dtype_is_of_the_computation_and_parameters_stay_float32(function, side):
    variables, logits = shapes_of(function(7, dtype=jnp.bfloat16), side)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(("function", "side"), SIZED)
def test_the_model_scales_its_input_once(function, side):
    seen = []

    def record(image_BHWC):
        seen.append(image_BHWC.shape)
        return image_BHWC

    model = function(7, scaling=record)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    assert seen == [(1, side, side, 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "side"), TINY.values(), ids=TINY)
def test_a_step_has_finite_gradients_everywhere_and_moves_only_statistics(model, side):
    batch = {
        "image": jax.random.uniform(jax.random.key(0), (4, side, side, 3)),
        "label": jnp.array([0, 1, 2, 1]),
        "mask": jnp.ones(4, bool),
    }

    variables = random_variables(model, batch["image"])
    params = variables.pop("params")
    loss_fn = classification(model).loss

    @quick_jit
    def step(params, before, key):
        (loss, aux), gradient = mean_gradient(loss_fn)(params, before, batch, key)
        evaluated, unmoved = loss_fn(params, before, batch, None)
        return (loss, evaluated.compute()), aux.model_state, unmoved.model_state, gradient

    before = variables
    losses, trained, unmoved, gradient = step(params, before, jax.random.key(1))
    assert all(0 < loss < 20 for loss in losses)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.isfinite(leaf).all(), path
        if path[-1].key == "kernel":
            assert jnp.abs(leaf).max() > 0, path
    chex.assert_trees_all_equal(before, unmoved)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(trained), strict=True):
        assert jnp.abs(old - new).max() > 0


def test_the_stride_of_a_bottleneck_is_in_its_3x3_convolution():
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    model = resnet50()
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    _, state = jax.eval_shape(lambda v, x: model.apply(v, x, capture_intermediates=True), variables, images)
    block = state["intermediates"]["stage1_block0"]
    assert [block[f"conv{i}"]["__call__"][0].shape for i in range(3)] == [
        (1, 56, 56, 128),
        (1, 28, 28, 128),
        (1, 28, 28, 512),
    ]


def test_the_stem_for_small_images_keeps_every_pixel():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    model = resnet18(10, small_images=True)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    # 11,173,962 is what the ResNet-18 of CIFAR repositories has (kuangliu/pytorch-cifar).
    assert num_params(variables["params"]) == 11_173_962
    _, state = jax.eval_shape(lambda v, x: model.apply(v, x, capture_intermediates=True), variables, images)
    shapes = [state["intermediates"][f"stage{i}_block0"]["__call__"][0].shape for i in range(4)]
    assert shapes == [(1, 32, 32, 64), (1, 16, 16, 128), (1, 8, 8, 256), (1, 4, 4, 512)]


@pytest.mark.slow
@pytest.mark.parametrize("zero_init", [True, False])
def test_a_block_starts_as_its_shortcut_if_asked(zero_init):
    model = ResNet(None, (2,), width=4, small_images=True, zero_init=zero_init, scaling=scaling.identity)
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))

    _, state = quick_jit(
        lambda key: model.apply(model.init(key, images), images, capture_intermediates=True)
    )(jax.random.key(1))
    stem, last = (state["intermediates"][name]["__call__"][0] for name in ("stem", "stage0_block1"))
    assert jnp.array_equal(stem, last) == zero_init


def test_scalings_equal_their_formulas():
    image_BHWC = np.random.default_rng(0).uniform(size=(2, 4, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(scaling.identity(image_BHWC), image_BHWC)
    np.testing.assert_allclose(scaling.minus_one_to_one(image_BHWC), (image_BHWC - 0.5) / 0.5, atol=1e-6)
    expected = (image_BHWC - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(scaling.imagenet_statistics(jnp.asarray(image_BHWC)), expected, atol=1e-5)


def test_a_grey_image_is_not_broadcast_to_the_channels_of_the_scaling():
    with pytest.raises(ValueError, match="the scaling has 3 channels and the images have 1"):
        scaling.imagenet_statistics(jnp.zeros((1, 4, 4, 1)))


@pytest.mark.parametrize(
    ("channels", "rounded"),
    # Sandler's rule: multiples of 8, at least 8, never below 90 %. 32·0.35 = 11.2 would round to 8.
    [(11.2, 16), (8.4, 8), (3, 8), (24, 24), (33.6, 32), (1792.0, 1792), (12.0, 16)],
)
def test_channels_are_rounded_to_eights(channels, rounded):
    assert round_channels(channels) == rounded


@pytest.mark.parametrize(
    ("model", "side", "error", "message"),
    [
        (alexnet(), 32, ValueError, "after the strides the image is 0x0"),
        (vgg16(), 16, ValueError, "after the strides the image is 0x0"),
        (inception_v3(), 64, ValueError, "after the strides the image is 0x0"),
        (vit_b16(), 32 + 1, ValueError, "patch_size=16 does not divide the image 33x33"),
        (
            ViT(3, dim=8, num_layers=1, num_heads=3),
            16,
            UserError,
            "num_heads=3 does not divide the model dim 8",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(model, side, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID", 1])
def test_a_depthwise_convolution_is_a_convolution_with_one_group_a_channel(strides, padding):
    x_BHWC = jax.random.normal(jax.random.key(0), (2, 7, 8, 5))
    options = {"strides": strides, "padding": padding}
    variables = DepthwiseConv((3, 3), **options).init(jax.random.key(1), x_BHWC)
    expected = nn.Conv(5, (3, 3), feature_group_count=5, use_bias=False, **options).apply(variables, x_BHWC)
    actual = DepthwiseConv((3, 3), **options).apply(variables, x_BHWC)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_whitened_patches_are_uncorrelated_with_variance_one():
    random = np.random.default_rng(0)
    smooth = np.cumsum(random.normal(0, 0.3, (50, 9, 9, 3)), axis=1).astype(np.float32)
    kernel = airbench.whitening_filters(smooth, epsilon=0.0)
    whitened = np.asarray(airbench.patches(jnp.asarray(smooth))).reshape(-1, 12) @ kernel
    np.testing.assert_allclose(whitened.T @ whitened / len(whitened), np.eye(12), atol=1e-3)


@pytest.mark.slow
def test_a_partial_identity_passes_its_input_on():
    kernel = airbench.partial_identity(jax.random.key(0), (3, 3, 4, 6))
    x_BHWC = jax.random.normal(jax.random.key(1), (2, 5, 5, 4))
    y_BHWC = jax.lax.conv_general_dilated(
        x_BHWC, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(y_BHWC[..., :4], x_BHWC, atol=1e-6)
    assert np.abs(y_BHWC[..., 4:]).max() > 0.1


@pytest.mark.slow
def test_airbench_sees_an_image_and_its_mirror_image_alike_in_evaluation():
    model = airbench.Airbench(5, widths=(8, 12))
    x_BHWC = jax.random.uniform(jax.random.key(0), (3, 12, 12, 3))
    variables = model.init(jax.random.key(1), x_BHWC)
    logits_BN = model.apply(variables, x_BHWC)
    assert logits_BN.shape == (3, 5)
    np.testing.assert_allclose(model.apply(variables, x_BHWC[:, :, ::-1]), logits_BN, atol=1e-5)
    trained, _ = model.apply(variables, x_BHWC, train=True, mutable=["batch_stats"])
    assert trained.shape == (3, 5)


def test_airbench_on_cifar_has_the_parameters_of_its_shapes():
    # Patches of 2×2×3 whitened (12·12 + 12), six 3×3 convolutions with a bias each after them, a head.
    shapes = jax.eval_shape(airbench.Airbench(10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    convolutions = [(24, 64), (64, 64), (64, 256), (256, 256), (256, 256), (256, 256)]
    expected = 12 * 13 + sum(9 * i * o + o for i, o in convolutions) + 2560
    assert num_params(shapes["params"]) == expected


def test_the_new_head_for_ten_classes_has_165258_parameters():
    """Means over the image, 128 units, 10 classes: 1280·128 + 128 + 128·10 + 10."""
    model = WithHead(mobilenet_v2(None), 10, hidden=(128,))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    params = dict(variables["params"])
    backbone = [params.pop("backbone"), variables["batch_stats"]["backbone"]]
    assert num_params(backbone) == 2_257_984
    assert num_params(params) == 165_258
