"""Explanations equal those of Captum and SHAP for a network with the same weights.

pip install -e '.[dev,peers]'.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dl.analysis import attributions
from dl.models.cnn import CNN

# Their warnings are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = [0, 2, 1]
IMAGES = np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def attr():
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    return pytest.importorskip("captum.attr", reason="needs the extra 'peers'")


@pytest.fixture(scope="module")
def model():
    return CNN((3,), (5,), 4, pool=True)


@pytest.fixture(scope="module")
def variables(model):
    variables = model.init(jax.random.key(0), IMAGES)
    # LRP-γ favours positive biases in ours, as in the paper's equation, and not in theirs: none is positive.
    return jax.tree.map(lambda leaf: leaf - 0.03 if leaf.ndim == 1 else leaf, variables)


@pytest.fixture(scope="module")
def score(model, variables):
    return Partial(model.apply, variables)


@pytest.fixture(scope="module")
def net(attr, variables):
    """The same network in PyTorch."""
    import torch
    from torch import nn

    class Net(nn.Sequential):
        def forward(self, x):
            return self[3:](self[:3](x).flatten(1))  # their LRP has no rule for nn.Flatten

        def __getitem__(self, index):
            return (
                nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)
            )

    net = Net(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Linear(27, 5), nn.ReLU(), nn.Linear(5, 4))
    conv, first, last = (variables["params"][name] for name in ("Conv_0", "Dense_0", "Dense_1"))
    # Theirs is flattened channels first.
    first_kernel = np.asarray(first["kernel"]).reshape(3, 3, 3, 5).transpose(3, 2, 0, 1).reshape(5, 27)
    for layer, kernel, bias in (
        (net[0], np.asarray(conv["kernel"]).transpose(3, 2, 0, 1), conv["bias"]),
        (net[3], first_kernel, first["bias"]),
        (net[5], np.asarray(last["kernel"]).T, last["bias"]),
    ):
        layer.weight.data = torch.tensor(kernel.copy())
        layer.bias.data = torch.tensor(np.array(bias))
    return net


@pytest.fixture(scope="module")
def tensor(attr):
    import torch

    return torch.tensor(IMAGES.transpose(0, 3, 1, 2).copy())


def channels_last(found):
    return found.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (attributions.gradient, "Saliency", {"abs": False}),
        (attributions.gradient_times_input, "InputXGradient", {}),
        (attributions.guided_backpropagation, "GuidedBackprop", {}),
    ],
    ids=["gradient", "gradient_times_input", "guided_backpropagation"],
)
def test_gradients(attr, net, score, tensor, ours, theirs, options):
    expected = getattr(attr, theirs)(net).attribute(tensor, target=TARGETS, **options)
    np.testing.assert_allclose(ours(score, IMAGES, TARGETS), channels_last(expected), **TOLERANCE)


def test_integrated_gradients(attr, net, score, tensor):
    found = attributions.integrated_gradients(score, IMAGES, TARGETS, baseline=0.2)
    for row, num_intervals in enumerate(found.num_intervals):
        expected = attr.IntegratedGradients(net).attribute(
            tensor[row : row + 1],
            baselines=0.2,
            target=TARGETS[row],
            n_steps=int(num_intervals),
            method="riemann_middle",
        )
        np.testing.assert_allclose(found.attributions[row], channels_last(expected)[0], **TOLERANCE)


def test_occlusion(attr, net, score, tensor):
    found = attributions.occlusion(score, IMAGES, TARGETS, window=(3, 3), stride=(2, 2), background=0.1)
    expected = attr.Occlusion(net).attribute(
        tensor, sliding_window_shapes=(1, 3, 3), strides=(1, 2, 2), baselines=0.1, target=TARGETS
    )
    np.testing.assert_allclose(found, channels_last(expected)[..., 0], **TOLERANCE)


def test_grad_cam(attr, net, model, variables, tensor):
    """Ours reads the output of the convolution, before its ReLU, as theirs does with the same layer."""
    found = attributions.grad_cam(model, variables, IMAGES, "Conv_0", TARGETS, rectified=False, resized=False)
    expected = attr.LayerGradCam(net, net[0]).attribute(tensor, target=TARGETS)
    np.testing.assert_allclose(found, channels_last(expected)[..., 0], **TOLERANCE)


@pytest.mark.parametrize(("epsilon", "gamma"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.25)])
def test_relevance(attr, net, score, tensor, epsilon, gamma):
    from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule

    for layer in (net[0], net[3], net[5]):
        layer.rule = GammaRule(gamma=gamma) if gamma else EpsilonRule(epsilon=epsilon or 1e-9)
    expected = attr.LRP(net).attribute(tensor, target=TARGETS)
    found = attributions.relevance(score, IMAGES, TARGETS, epsilon=epsilon, gamma=gamma)
    np.testing.assert_allclose(found, channels_last(expected), **TOLERANCE)


@pytest.mark.parametrize("explainer", ["ExactExplainer", "KernelExplainer", "PermutationExplainer"])
def test_shapley_values(explainer):
    shap = pytest.importorskip("shap", reason="needs the extra 'peers'")
    rng = np.random.default_rng(0)
    weights, inputs = rng.normal(size=(6, 4)), rng.normal(size=(3, 6)).astype(np.float32)
    background = rng.normal(size=(9, 6)).astype(np.float32)

    def theirs(inputs_BD):
        return np.tanh(inputs_BD.astype(np.float64) @ weights).prod(-1)

    def ours(inputs_BD):
        return jnp.tanh(inputs_BD @ jnp.asarray(weights, jnp.float32)).prod(-1, keepdims=True)

    if explainer == "KernelExplainer":
        expected = shap.KernelExplainer(theirs, background).shap_values(inputs, nsamples=64, silent=True)
        found = attributions.kernel_shap(ours, inputs, background=background)
        np.testing.assert_allclose(found, expected, **TOLERANCE)
        return
    masker = shap.maskers.Independent(background, max_samples=9)
    if explainer == "ExactExplainer":
        expected = shap.explainers.ExactExplainer(theirs, masker)(inputs).values
        found = attributions.exact_shapley(ours, inputs, background=background)
        np.testing.assert_allclose(found, expected, **TOLERANCE)
        return
    expected = shap.explainers.PermutationExplainer(theirs, masker, seed=0)(
        inputs, max_evals=2000, silent=True
    ).values
    found = attributions.permutation_shap(ours, inputs, background=background, num_permutations=100)
    np.testing.assert_allclose(found, expected, atol=0.05)  # other orders
