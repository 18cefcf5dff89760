"""The models equal those of `transformers` with the same random weights, read by `load_pretrained`.

pip install -e '.[dev,peers]'; nothing is downloaded.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl.models.mobilenet import mobilenet_v2
from dl.models.resnet import ResNet
from dl.models.vit import ViT
from dl.models.weights import names as torch_names
from dl.models.weights.pretrained import load_pretrained
from dl.training.state import num_params
from tests.helpers import quick_jit

# Their warnings are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

HALF = (0.5, 0.5, 0.5)  # IMAGENET_STANDARD_MEAN and _STD of transformers


@pytest.fixture(scope="module")
def transformers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("torch", reason="needs the extra 'peers'")
        yield pytest.importorskip("transformers", reason="needs the extra 'peers'")


def randomize(module):
    """Sets every weight and statistic so that signals neither vanish nor explode, and none is a default."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 1:
            tensor.normal_(0, 0.1, generator=generator)
        else:
            fan_in = tensor[0].numel() if name.endswith("weight") else 4
            tensor.normal_(0, (1.5 / fan_in) ** 0.5, generator=generator)
    return module.eval()


def logits_of_both(torch_model, model, name_map, folder, side, mean, std):
    import torch

    # A dark, a dim and a bright image, so that the logits of the three differ.
    brightness_B111 = np.array([0.1, 0.4, 1.0]).reshape(3, 1, 1, 1)
    noise_BHWC = np.random.default_rng(0).uniform(size=(3, side, side, 3))
    image_BHWC = (brightness_B111 * noise_BHWC).astype(np.float32)
    with torch.no_grad():
        pixels = (torch.tensor(image_BHWC) - torch.tensor(mean)) / torch.tensor(std)
        expected = randomize(torch_model)(pixels.permute(0, 3, 1, 2)).logits.numpy()
    torch_model.save_pretrained(folder)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image_BHWC)
    variables = load_pretrained(folder, shapes, name_map)
    logits = quick_jit(functools.partial(model.apply, train=False))(variables, jnp.asarray(image_BHWC))
    assert expected.std(0).mean() > 0.02  # logits that no image moves would prove nothing
    difference = np.abs(logits - expected).max()
    print(f"max |difference| {difference:.1e}, std of logits {expected.std(0).mean():.2g}")
    return np.asarray(logits), expected


@pytest.mark.parametrize("bottleneck", [False, True], ids=["basic", "bottleneck"])
def test_resnet(transformers, tmp_path, bottleneck):
    outer = 4 if bottleneck else 1
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8 * outer, 16 * outer, 32 * outer, 64 * outer],
        depths=[2, 1, 2, 1],
        layer_type="bottleneck" if bottleneck else "basic",
        num_labels=5,
    )
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    logits, expected = logits_of_both(
        transformers.ResNetForImageClassification(config),
        ResNet(5, (2, 1, 2, 1), bottleneck=bottleneck, width=8),
        torch_names.resnet,
        tmp_path,
        64,  # even, where the padding of PyTorch and of TensorFlow differ
        IMAGENET_DEFAULT_MEAN,
        IMAGENET_DEFAULT_STD,
    )
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [64, 75])
def test_mobilenet_v2(transformers, tmp_path, side):
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, num_labels=5)
    logits, expected = logits_of_both(
        transformers.MobileNetV2ForImageClassification(config),
        mobilenet_v2(5, width=0.35),
        torch_names.mobilenet_v2,
        tmp_path,
        side,
        HALF,
        HALF,
    )
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_mobilenet_v2_has_as_many_parameters_at_each_width(transformers, width):
    import torch

    with torch.device("meta"):
        config = transformers.MobileNetV2Config(depth_multiplier=width, num_labels=5)
        theirs = transformers.MobileNetV2ForImageClassification(config)
    ours = jax.eval_shape(mobilenet_v2(5, width).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert num_params(ours["params"]) == sum(parameter.numel() for parameter in theirs.parameters())


def test_vit(transformers, tmp_path):
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    logits, expected = logits_of_both(
        transformers.ViTForImageClassification(config),
        ViT(5, dim=24, num_layers=3, num_heads=4, patch_size=8, mlp_dim=40),
        torch_names.vit,
        tmp_path,
        32,
        HALF,
        HALF,
    )
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_a_base_model_is_read_without_a_head(transformers, tmp_path):
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    model = ViT(None, dim=24, num_layers=1, num_heads=4, patch_size=8, mlp_dim=config.intermediate_size)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    load_pretrained(tmp_path, shapes, torch_names.vit, skip=["pooler"])
