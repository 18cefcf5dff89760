"""Name maps from the tensors of the PyTorch models of Hugging Face to the variables of the models of `dl`.

There is one *name map* for each family. It is a function from the name and the values of a tensor of the
PyTorch model to the path, which starts with the collection, and the values of a variable of the Linen model.
It returns None for a name that is not in the family.

Shapes: H height, W width, I input channels, O output channels.
"""

from collections.abc import Callable, Sequence

import numpy as np

LinenPath = tuple[str, ...]
Mapped = tuple[LinenPath, np.ndarray] | None
NameMap = Callable[[str, np.ndarray], Mapped]


def resnet(name: str, array: np.ndarray) -> Mapped:
    """The name map of `ResNetForImageClassification` to `dl.models.resnet`, such as `microsoft/resnet-50`."""
    match name.removeprefix("resnet.").split("."):
        case ["embedder", "embedder", *leaf]:
            return _conv_norm(("stem",), leaf, array)
        case ["encoder", "stages", stage, "layers", block, "shortcut", *leaf]:
            return _conv_norm((f"stage{stage}_block{block}", "shortcut"), leaf, array)
        case ["encoder", "stages", stage, "layers", block, "layer", index, *leaf]:
            return _conv_norm((f"stage{stage}_block{block}", f"conv{index}"), leaf, array)
        case ["classifier", "1", *leaf]:
            return _dense(("head",), leaf, array)
    return None


def mobilenet_v2(name: str, array: np.ndarray) -> Mapped:
    """The name map of `MobileNetV2ForImageClassification` to `dl.models.mobilenet`.

    Google's weights, such as `google/mobilenet_v2_1.0_224`, have 1001 classes. Class 0 is the background.
    """
    modules = {"expand_1x1": "expand", "conv_3x3": "depthwise", "reduce_1x1": "project"}
    match name.removeprefix("mobilenet_v2.").split("."):
        case ["conv_stem", "first_conv", *leaf]:
            return _conv_norm(("stem",), leaf, array)
        case ["conv_stem", module, *leaf] if module in modules:
            return _conv_norm(("block0", modules[module]), leaf, array)
        case ["layer", index, module, *leaf] if index.isdecimal() and module in modules:
            return _conv_norm((f"block{int(index) + 1}", modules[module]), leaf, array)
        case ["conv_1x1", *leaf]:
            return _conv_norm(("last",), leaf, array)
        case ["classifier", *leaf]:
            return _dense(("head",), leaf, array)
    return None


def vit(name: str, array: np.ndarray) -> Mapped:
    """The name map of `ViTForImageClassification` to `dl.models.vit`, such as `google/vit-base-patch16-224`.

    The pooler of a base model is the module `pooler`. A classifier does not use it, so it must be skipped.
    """
    match name.removeprefix("vit.").split("."):
        case ["embeddings", "cls_token"]:
            return ("params", "class_token"), array
        case ["embeddings", "position_embeddings"]:
            return ("params", "positions"), array
        case ["embeddings", "patch_embeddings", "projection", "weight"]:
            return ("params", "patches", "kernel"), _to_HWIO(array)
        case ["embeddings", "patch_embeddings", "projection", "bias"]:
            return ("params", "patches", "bias"), array
        case [
            "encoder",
            "layer",
            index,
            "attention",
            "attention",
            ("query" | "key" | "value") as part,
            *leaf,
        ]:
            return _dense((f"block{index}", "attention", part), leaf, array)
        case ["encoder", "layer", index, "attention", "output", "dense", *leaf]:
            return _dense((f"block{index}", "attention", "out"), leaf, array)
        case ["encoder", "layer", index, "intermediate", "dense", *leaf]:
            return _dense((f"block{index}", "mlp0"), leaf, array)
        case ["encoder", "layer", index, "output", "dense", *leaf]:
            return _dense((f"block{index}", "mlp1"), leaf, array)
        case ["encoder", "layer", index, "layernorm_before", *leaf]:
            return _norm((f"block{index}", "norm0"), leaf, array)
        case ["encoder", "layer", index, "layernorm_after", *leaf]:
            return _norm((f"block{index}", "norm1"), leaf, array)
        case ["layernorm", *leaf]:
            return _norm(("norm",), leaf, array)
        case ["pooler", "dense", *leaf]:
            return _dense(("pooler",), leaf, array)
        case ["classifier", *leaf]:
            return _dense(("head",), leaf, array)
    return None


def _conv_norm(module: LinenPath, leaf: Sequence[str], array: np.ndarray) -> Mapped:
    match leaf:
        case ["convolution", "weight"]:
            return ("params", *module, "conv", "kernel"), _to_HWIO(array)
        case ["normalization", *rest]:
            return _norm((*module, "norm"), rest, array)
    return None


def _norm(module: LinenPath, leaf: Sequence[str], array: np.ndarray) -> Mapped:
    match leaf:
        case ["weight"]:
            return ("params", *module, "scale"), array
        case ["bias"]:
            return ("params", *module, "bias"), array
        case ["running_mean"]:
            return ("batch_stats", *module, "mean"), array
        case ["running_var"]:
            return ("batch_stats", *module, "var"), array
    return None


def _dense(module: LinenPath, leaf: Sequence[str], array: np.ndarray) -> Mapped:
    match leaf:
        case ["weight"]:
            return ("params", *module, "kernel"), array.T
        case ["bias"]:
            return ("params", *module, "bias"), array
    return None


def _to_HWIO(array_OIHW: np.ndarray) -> np.ndarray:
    # A kernel of another rank is not changed, so that a later check reports its shape.
    return array_OIHW.transpose(2, 3, 1, 0) if array_OIHW.ndim == 4 else array_OIHW
