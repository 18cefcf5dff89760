import json
import sys
import types

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from dl.errors import UserError
from dl.models.mobilenet import MobileNetV2
from dl.models.resnet import ResNet
from dl.models.vit import ViT, fit_positions, resize_positions
from dl.models.weights import names as torch_names
from dl.models.weights.files import load_safetensors, read_tensors, save_safetensors
from dl.models.weights.pretrained import load_pretrained, pretrained

pytest.importorskip("safetensors", reason="needs the extra 'weights'")
from safetensors.numpy import save_file

RESNET = ResNet(3, (1,), bottleneck=True, width=4)
MOBILENET = MobileNetV2(3, width=0.1, stages=((1, 16, 1, 1), (6, 24, 2, 1)), features=16)
VIT = ViT(3, dim=8, num_layers=1, num_heads=2, patch_size=4, mlp_dim=12)


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def fill(shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def conv_norm(name, *shape):
    """Returns the tensors of a convolution and its normalisation, as PyTorch names and shapes them."""
    norms = {f"{name}.normalization.{leaf}": shape[:1] for leaf in ("weight", "bias")}
    norms |= {f"{name}.normalization.running_{leaf}": shape[:1] for leaf in ("mean", "var")}
    return {
        f"{name}.convolution.weight": shape,
        **norms,
        f"{name}.normalization.num_batches_tracked": (),
    }


def linear(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def resnet_tensors():
    block = "resnet.encoder.stages.0.layers.0"
    return fill(
        conv_norm("resnet.embedder.embedder", 4, 3, 7, 7)
        | conv_norm(f"{block}.shortcut", 16, 4, 1, 1)
        | conv_norm(f"{block}.layer.0", 4, 4, 1, 1)
        | conv_norm(f"{block}.layer.1", 4, 4, 3, 3)
        | conv_norm(f"{block}.layer.2", 16, 4, 1, 1)
        | linear("classifier.1", 3, 16)
    )


def mobilenet_tensors():
    stem, tensors = "mobilenet_v2.conv_stem", {}
    for name, shape in {
        f"{stem}.first_conv": (8, 3, 3, 3),
        f"{stem}.conv_3x3": (8, 1, 3, 3),
        f"{stem}.reduce_1x1": (8, 8, 1, 1),
        **{
            f"mobilenet_v2.layer.{i}.{part}": shape
            for i in range(2)
            for part, shape in {
                "expand_1x1": (48, 8, 1, 1),
                "conv_3x3": (48, 1, 3, 3),
                "reduce_1x1": (8, 48, 1, 1),
            }.items()
        },
        "mobilenet_v2.conv_1x1": (16, 8, 1, 1),
    }.items():
        tensors |= conv_norm(name, *shape)
    return fill(tensors | linear("classifier", 3, 16))


def vit_tensors():
    layer = "vit.encoder.layer.0"
    tensors = {
        "vit.embeddings.cls_token": (1, 1, 8),
        "vit.embeddings.position_embeddings": (1, 5, 8),
        **linear("vit.embeddings.patch_embeddings.projection", 8, 3, 4, 4),
        **linear(f"{layer}.attention.output.dense", 8, 8),
        **linear(f"{layer}.intermediate.dense", 12, 8),
        **linear(f"{layer}.output.dense", 8, 12),
        **linear("classifier", 3, 8),
    }
    for part in ("query", "key", "value"):
        tensors |= linear(f"{layer}.attention.attention.{part}", 8, 8)
    for name in (f"{layer}.layernorm_before", f"{layer}.layernorm_after", "vit.layernorm"):
        tensors |= linear(name, 8)
    return fill(tensors)


def resnet_file(tmp_path, **changes):
    """Writes the tensors, each of `changes` (dots as __) replaced, or left out where it is None."""
    tensors = resnet_tensors() | {name.replace("__", "."): value for name, value in changes.items()}
    file = tmp_path / "model.safetensors"
    save_file({name: value for name, value in tensors.items() if value is not None}, file)
    return file


@pytest.mark.parametrize(
    ("model", "tensors", "name_map"),
    [
        (RESNET, resnet_tensors(), torch_names.resnet),
        (MOBILENET, mobilenet_tensors(), torch_names.mobilenet_v2),
        (VIT, vit_tensors(), torch_names.vit),
    ],
    ids=["resnet", "mobilenet", "vit"],
)
def test_every_tensor_finds_its_place(tmp_path, model, tensors, name_map):
    save_file(tensors, tmp_path / "model.safetensors")
    shapes = shapes_of(model)
    loaded = load_pretrained(tmp_path, shapes, name_map)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, shapes)
    # All values are distinct draws: those that came out are those that went in.
    came_out = np.sort(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(loaded)]))
    counters = ".num_batches_tracked"
    went_in = [array.ravel() for name, array in tensors.items() if not name.endswith(counters)]
    np.testing.assert_array_equal(came_out, np.sort(np.concatenate(went_in)))


def test_kernels_are_laid_out_as_linen_has_them(tmp_path):
    tensors = resnet_tensors()
    loaded = load_pretrained(resnet_file(tmp_path), shapes_of(RESNET), torch_names.resnet)
    kernel_HWIO = loaded["params"]["stem"]["conv"]["kernel"]
    weight_OIHW = tensors["resnet.embedder.embedder.convolution.weight"]
    assert kernel_HWIO[5, 6, 2, 1] == weight_OIHW[1, 2, 5, 6]
    assert loaded["params"]["head"]["kernel"][9, 2] == tensors["classifier.1.weight"][2, 9]
    variances = tensors["resnet.embedder.embedder.normalization.running_var"]
    np.testing.assert_array_equal(loaded["batch_stats"]["stem"]["norm"]["var"], variances)


def test_a_half_precision_file_is_read_into_float32(tmp_path):
    bias = np.array([1.5, -2, 0.25], ml_dtypes.bfloat16)
    file = resnet_file(tmp_path, classifier__1__bias=bias)
    loaded = load_pretrained(file, shapes_of(RESNET), torch_names.resnet)
    assert loaded["params"]["head"]["bias"].dtype == np.float32
    np.testing.assert_array_equal(loaded["params"]["head"]["bias"], [1.5, -2, 0.25])


@pytest.mark.parametrize("num_classes", [7, None])
def test_the_head_can_be_left_as_it_is(tmp_path, num_classes):
    model = ResNet(num_classes, (1,), bottleneck=True, width=4)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 8, leaf.dtype), shapes_of(model))
    loaded = load_pretrained(resnet_file(tmp_path), variables, torch_names.resnet, skip=["head"])
    chex.assert_trees_all_equal_shapes(loaded, variables)
    chex.assert_trees_all_equal(loaded["params"].get("head"), variables["params"].get("head"))
    assert np.abs(loaded["params"]["stem"]["conv"]["kernel"] - 8).min() > 0


def test_an_experiment_can_start_from_pretrained_weights_with_a_new_head(tmp_path):
    """`Task.init` is traced: what is read becomes constants, what is skipped is drawn."""
    model = ResNet(7, (1,), bottleneck=True, width=4)
    file = resnet_file(tmp_path)

    def init(key, image_BHWC):
        return load_pretrained(file, model.init(key, image_BHWC), torch_names.resnet, skip=["head"])

    variables = jax.jit(init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    stem = resnet_tensors()["resnet.embedder.embedder.convolution.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(variables["params"]["stem"]["conv"]["kernel"], stem)
    assert variables["params"]["head"]["kernel"].shape == (16, 7)
    assert jnp.abs(variables["params"]["head"]["kernel"]).max() > 0


def test_adapters_are_not_looked_for_in_a_file(tmp_path):
    shapes = shapes_of(RESNET)
    shapes["params"]["head"]["lora_a"] = jax.ShapeDtypeStruct((16, 2), np.float32)
    start = pretrained(resnet_file(tmp_path), torch_names.resnet, "backbone")(
        {name: {"backbone": tree} for name, tree in shapes.items()}
    )
    assert set(start["params"]["backbone"]["head"]) == {"kernel", "bias"}
    adapted = load_pretrained(tmp_path, shapes, torch_names.resnet)
    assert adapted["params"]["head"]["lora_a"].shape == (16, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classifier__1__bias": None},
            "model.safetensors: there is no tensor for params/head/bias of the model",
        ),
        (
            {"classifier__1__bias": None, "classifier__1__weight": None},
            "no tensor for params/head/bias and 1 more of the model",
        ),
        (
            {"classifier__1__bias": np.zeros(4, np.float32)},
            r"'classifier.1.bias' has shape \(4,\) as params/head/bias, and the model needs \(3,\)",
        ),
        (
            {"resnet__embedder__embedder__convolution__weight": np.zeros((4, 3), np.float32)},
            r"'resnet.embedder.embedder.convolution.weight' has shape \(4, 3\) as params/stem/conv/kernel",
        ),
        (
            {"classifier__1__bias": np.zeros(3, np.int8)},
            "'classifier.1.bias' is int8, and params/head/bias is float32",
        ),
        (
            {"resnet__encoder__stages__1__layers__0__layer__0__convolution__weight": np.zeros((4, 4, 1, 1))},
            "'resnet.encoder.stages.1.layers.0.layer.0.convolution.weight' is not expected",
        ),
        (
            {"resnet__encoder__extra": np.zeros(3)},
            "'resnet.encoder.extra' does not belong to the model family 'resnet'",
        ),
        (
            {"embedder__embedder__normalization__bias": np.zeros(4)},
            "both tensors '.*' and '.*' map to params/stem/norm/bias",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_one_line_with_its_name(tmp_path, changes, message):
    file = resnet_file(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(file, shapes_of(RESNET), torch_names.resnet)
    assert "\n" not in str(error.value)


def test_skipping_what_is_nowhere_is_refused(tmp_path):
    with pytest.raises(UserError, match="skip='haed' is neither a module of the model nor of"):
        load_pretrained(resnet_file(tmp_path), shapes_of(RESNET), torch_names.resnet, skip=["haed"])


def test_the_shards_of_an_index_are_read(tmp_path):
    tensors = resnet_tensors()
    names = sorted(tensors)
    for number, part in enumerate((names[:9], names[9:])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"model-{number}.safetensors")
    weight_map = {name: f"model-{int(name in names[9:])}.safetensors" for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert sorted(name for name, _ in read_tensors(tmp_path)) == names
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match="model-1.safetensors cannot be read as safetensors"):
        list(read_tensors(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="is not an index of safetensors files"):
        list(read_tensors(tmp_path))


def test_pickled_weights_are_never_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="holds 0 safetensors files; .*pickled .*are never read"):
        list(read_tensors(tmp_path))
    with pytest.raises(UserError, match=r"pytorch_model.bin cannot be read as safetensors"):
        list(read_tensors(tmp_path / "pytorch_model.bin"))


def test_a_truncated_file_is_one_line(tmp_path):
    file = resnet_file(tmp_path)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        list(read_tensors(file))


def fake_hub(monkeypatch, snapshot_download):
    monkeypatch.setitem(
        sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download)
    )


def test_a_name_on_the_hub_is_fetched_at_its_revision(tmp_path, monkeypatch):
    resnet_file(tmp_path)
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    fake_hub(monkeypatch, snapshot_download)
    shapes = shapes_of(RESNET)
    loaded = load_pretrained("someone/resnet", shapes, torch_names.resnet, revision="abc")
    chex.assert_trees_all_equal_shapes(loaded, shapes)
    assert asked == [("someone/resnet", "abc", ["*.safetensors", "*.safetensors.index.json"])]


def test_a_hub_out_of_reach_or_absent_is_one_line(monkeypatch):
    def offline(*_, **__):
        raise OSError("Name or service\nnot known")

    fake_hub(monkeypatch, offline)
    with pytest.raises(UserError, match="no file or folder someone/resnet, and .*Name or service not known"):
        list(read_tensors("someone/resnet"))
    with pytest.raises(UserError, match="no file or folder weights.safetensors, and it is not a name"):
        list(read_tensors("weights.safetensors"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"huggingface_hub is not installed; pip install 'dl\[weights\]'"):
        list(read_tensors("someone/resnet"))


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_]
)
def test_the_round_trip_keeps_every_bit(tmp_path, dtype):
    bits = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
    matrix = (bits % 2).astype(bool) if dtype is np.bool_ else bits.view(dtype)
    tree = {
        "params": {
            "dense": {"kernel": matrix, "transposed": matrix.T, "strided": matrix[:, ::2]},
            "scalar": matrix[(0,) * matrix.ndim],
            "empty": matrix[:0],
        },
        "batch_stats": {"mean": matrix[0]},
    }
    tree = jax.tree.map(np.asarray, tree)
    file = tmp_path / "new" / "params.safetensors"
    save_safetensors(file, tree)
    loaded = load_safetensors(file, tree)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, tree)
    # As bytes, because random bits hold NaNs of many kinds.
    assert [leaf.tobytes() for leaf in jax.tree.leaves(loaded)] == [
        leaf.tobytes() for leaf in jax.tree.leaves(tree)
    ]
    chex.assert_trees_all_equal_structs(load_safetensors(file), tree)
    assert {name for name, _ in read_tensors(file)} >= {"params/dense/kernel", "batch_stats/mean"}
    assert list(file.parent.iterdir()) == [file]


def test_the_parameters_of_a_model_survive(tmp_path):
    shapes = shapes_of(VIT)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.bfloat16), shapes)
    save_safetensors(tmp_path / "vit.safetensors", params)
    chex.assert_trees_all_equal(load_safetensors(tmp_path / "vit.safetensors", params), params)


def test_a_file_that_does_not_match_is_refused_by_name(tmp_path):
    file = tmp_path / "params.safetensors"
    save_safetensors(file, {"a": np.zeros(3), "b": np.zeros(2)})
    with pytest.raises(UserError, match="the tensor 'b' is not expected"):
        load_safetensors(file, {"a": np.zeros(3)})
    with pytest.raises(UserError, match="no tensor for c/d"):
        load_safetensors(file, {"a": np.zeros(3), "b": np.zeros(2), "c": {"d": np.zeros(1)}})
    with pytest.raises(UserError, match=r"'b' has shape \(2,\) as b, and the model needs \(5,\)"):
        load_safetensors(file, {"a": np.zeros(3), "b": np.zeros(5)})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a/b": np.zeros(1)}, r"the key \('a/b',\) cannot be a name"),
        ({"a": {0: np.zeros(1)}}, r"the key \('a', 0\) cannot be a name"),
        ({"a": {"b": object()}}, "a/b is of type object; it must be an array"),
        ({"a": np.zeros(1, np.complex128)}, "complex128"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, tree, message):
    with pytest.raises(UserError, match=message):
        save_safetensors(tmp_path / "x.safetensors", tree)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 3), (2, 8)])
def test_positions_are_resampled_as_pillow_resamples_an_image(old, new):
    """Pillow's bicubic filter antialiases, as timm's resampling by PyTorch does."""
    random = np.random.default_rng(0)
    positions = random.normal(size=(1, 1 + old * old, 5)).astype(np.float32)
    resized = resize_positions(positions, 1 + new * new)
    np.testing.assert_array_equal(resized[:, 0], positions[:, 0])
    for channel in range(5):
        image = Image.fromarray(positions[0, 1:, channel].reshape(old, old))
        expected = np.asarray(image.resize((new, new), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(resized[0, 1:, channel].reshape(new, new), expected, atol=1e-5)


def test_positions_of_another_grid_or_none():
    positions = np.random.default_rng(0).normal(size=(1, 5, 2)).astype(np.float32)
    np.testing.assert_array_equal(resize_positions(positions, 5), positions)
    assert resize_positions(positions, 7, (2, 3)).shape == (1, 7, 2)
    for arguments in [(7,), (7, (2, 2)), (1,)]:
        with pytest.raises(UserError):
            resize_positions(positions, *arguments)


@pytest.mark.slow
def test_a_vision_transformer_loads_weights_of_another_image_size(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(vit_tensors(), file)
    images = jnp.zeros((1, 12, 12, 3))
    shapes = jax.eval_shape(VIT.init, jax.random.key(0), images)
    with pytest.raises(UserError, match=r"has shape \(1, 5, 8\) as params/positions"):
        load_pretrained(file, shapes, torch_names.vit)
    loaded = load_pretrained(file, shapes, torch_names.vit, fit=fit_positions)
    assert loaded["params"]["positions"].shape == (1, 10, 8)
    assert np.isfinite(VIT.apply(loaded, images)).all()
