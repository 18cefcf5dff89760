"""The models equal those of Keras applications with the same random weights.

pip install -e '.[dev,peers]'; nothing is downloaded.
"""

import functools
import re

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl.models import scaling
from dl.models.inception import inception_v3
from dl.models.layers import DepthwiseConv
from dl.models.mobilenet import mobilenet_v2
from dl.models.vgg import vgg16
from tests.helpers import quick_jit

# Their warnings are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def keras():
    with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"):
        patch.setenv("KERAS_BACKEND", "jax")
        keras = pytest.importorskip("keras", reason="needs the extra 'peers'")
        if keras.backend.backend() != "jax":
            pytest.skip("Keras was imported before with another backend")
        yield keras


def randomize(keras_model, gain):
    """Sets every weight and statistic so that signals neither vanish nor explode, and none is a default."""
    rng = np.random.default_rng(0)
    for weight in keras_model.weights:
        shape = tuple(weight.shape)
        if weight.name in ("moving_variance", "gamma"):
            values = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            values = rng.normal(0, 0.1, shape)
        else:
            is_depthwise = len(shape) == 4 and shape[3] == 1
            fan_in = 9 if is_depthwise else np.prod(shape[:-1])
            values = rng.normal(0, (gain / fan_in) ** 0.5, shape)
        weight.assign(values.astype(np.float32))


def modules_in_order(model, image_BHWC):
    """Returns our variables' shapes and the paths of convolutions, normalisations, dense layers as called."""
    paths = {nn.Conv: [], nn.BatchNorm: [], nn.Dense: []}

    def record(call, args, kwargs, context):
        kind = nn.Conv if isinstance(context.module, DepthwiseConv) else type(context.module)
        if context.method_name == "__call__" and kind in paths:
            paths[kind].append(context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(model.init, jax.random.key(0), image_BHWC)
    return shapes, paths


def layers_in_order(keras, keras_model):
    """Returns the layers of each kind in the order of their creation, which is that of the published code."""

    def number(layer):
        return int((re.search(r"_(\d+)$", layer.name) or [0, 0])[1])

    def of(*kinds):
        found = [layer for layer in keras_model.layers if isinstance(layer, kinds)]
        automatic = all(re.fullmatch(r"(conv2d|batch_normalization)(_\d+)?", layer.name) for layer in found)
        return sorted(found, key=number) if automatic else found

    kinds = keras.layers
    return {
        nn.Conv: of(kinds.Conv2D, kinds.DepthwiseConv2D),
        nn.BatchNorm: of(kinds.BatchNormalization),
        nn.Dense: of(kinds.Dense),
    }


def copy_variables(keras, keras_model, model, image_BHWC):
    """Returns our variables with the values of Keras, layer by layer; every one is set exactly once."""
    shapes, paths = modules_in_order(model, image_BHWC)
    layers = layers_in_order(keras, keras_model)
    names = {
        "kernel": ("params", "kernel"),
        "bias": ("params", "bias"),
        "gamma": ("params", "scale"),
        "beta": ("params", "bias"),
        "moving_mean": ("batch_stats", "mean"),
        "moving_variance": ("batch_stats", "var"),
    }
    values = {}
    for kind, ours in paths.items():
        for path, layer in zip(ours, layers[kind], strict=True):
            for weight in layer.weights:
                array = np.asarray(weight)
                if isinstance(layer, keras.layers.DepthwiseConv2D):
                    array = array.transpose(0, 1, 3, 2)
                collection, name = names[weight.name]
                values[collection, *path, name] = array
    flat = flax.traverse_util.flatten_dict(shapes)
    assert {path: array.shape for path, array in values.items()} == {
        path: leaf.shape for path, leaf in flat.items()
    }
    return flax.traverse_util.unflatten_dict(values)


@pytest.mark.parametrize("name", ["vgg16", "inception_v3", "mobilenet_v2", "mobilenet_v2-odd"])
def test_the_logits_are_the_same(keras, name):
    applications = keras.applications
    function, module, model, side, gain, options = {
        "vgg16": (applications.VGG16, None, vgg16(5, scaling=scaling.identity), 32, 2, {}),
        "inception_v3": (applications.InceptionV3, applications.inception_v3, inception_v3(5), 79, 2, {}),
        "mobilenet_v2": (
            *(applications.MobileNetV2, applications.mobilenet_v2, mobilenet_v2(5, width=0.5), 64, 1.5),
            {"alpha": 0.5},
        ),
        "mobilenet_v2-odd": (
            *(applications.MobileNetV2, applications.mobilenet_v2, mobilenet_v2(5, width=1.4), 75, 1.5),
            {"alpha": 1.4},
        ),
    }[name]
    # A dark, a dim and a bright image, so that the logits of the three differ.
    brightness_B111 = np.array([0.1, 0.4, 1.0]).reshape(3, 1, 1, 1)
    noise_BHWC = np.random.default_rng(0).uniform(size=(3, side, side, 3))
    image_BHWC = (brightness_B111 * noise_BHWC).astype(np.float32)
    keras.backend.clear_session()  # restart the numbers of the layers
    keras_model = function(
        weights=None, input_shape=(side, side, 3), classes=5, classifier_activation=None, **options
    )
    randomize(keras_model, gain)
    theirs = image_BHWC if module is None else module.preprocess_input(255 * image_BHWC)
    with jax.numpy_rank_promotion("allow"):
        expected = quick_jit(
            lambda trained, other, image: keras_model.stateless_call(trained, other, image, training=False)[0]
        )(
            [weight.value for weight in keras_model.trainable_variables],
            [weight.value for weight in keras_model.non_trainable_variables],
            jnp.asarray(theirs),
        )
    expected = np.asarray(expected)
    variables = copy_variables(keras, keras_model, model, image_BHWC)
    logits = quick_jit(functools.partial(model.apply, train=False))(variables, jnp.asarray(image_BHWC))
    difference = np.abs(logits - expected).max()
    print(f"max |difference| {difference:.1e}, std of logits {expected.std(0).mean():.2g}")
    assert expected.std(0).mean() > 0.02  # logits that no image moves would prove nothing
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
