"""Adapters: the base stays, the sum is a matrix, and what is saved fits only where it belongs."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.freezing import split
from dl.gradients import accumulated_gradient
from dl.methods.lora import LoRA, load_adapters, merge, save_adapters, with_lora
from dl.models.gpt2 import GPT2
from dl.training.loop import train
from tests.helpers import quick_jit

GPT = GPT2(vocab_size=13, max_length=8, dim=8, num_layers=2, num_heads=2)
ADAPTERS = LoRA(patterns=("query", "value", "feed_forward/out"), rank=2, alpha=6)
TOKENS_BT = np.random.default_rng(0).integers(0, 13, (4, 8)).astype(np.int32)
BATCH = {"tokens": TOKENS_BT, "index": np.arange(4), "mask": np.ones(4, bool)}


class Image(nn.Module):
    """A convolution of an image, another kernel of several output axes, and a dense layer."""

    @nn.compact
    def __call__(self, image_BHWC, train=False):
        x_BHWC = nn.relu(nn.Conv(6, (3, 3), strides=2, name="conv")(image_BHWC))
        x_BHWC = nn.Conv(6, (1, 1), feature_group_count=2, name="grouped")(x_BHWC)
        x_BHWC = nn.DenseGeneral((2, 3), name="general")(x_BHWC).reshape(x_BHWC.shape)
        return nn.Dense(3, name="head")(x_BHWC.mean((1, 2)))


IMAGES = {
    "image": np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32),
    "label": np.array([0, 1, 2, 1]),
    "index": np.arange(4),
    "mask": np.ones(4, bool),
}


def filled(params):
    """Returns the parameters with random matrices B."""
    random = np.random.default_rng(1)

    def fill(path, leaf):
        is_b = path[-1].key == "lora_b"
        return jnp.asarray(random.normal(size=leaf.shape), leaf.dtype) if is_b else leaf

    return jax.tree_util.tree_map_with_path(fill, params)


@pytest.fixture(
    scope="module", params=[pytest.param(False, marks=pytest.mark.slow), True], ids=["layers", "scan"]
)
def gpt(request):
    """Returns the plain task, the adapted task, and the adapted task's parameters with random B."""
    plain = task.language_model(GPT.clone(is_scanned=request.param))
    adapted = with_lora(plain, ADAPTERS)
    assert adapted.adapters == ADAPTERS
    return plain, adapted, quick_jit(adapted.init)(jax.random.key(0), BATCH)["params"]


@pytest.mark.slow
def test_a_new_adapter_changes_no_bit(gpt):
    plain, adapted, params = gpt
    base = quick_jit(plain.init)(jax.random.key(0), BATCH)
    stripped = merge(params, ADAPTERS)
    chex.assert_trees_all_equal(stripped, base["params"])
    np.testing.assert_array_equal(
        quick_jit(adapted.predict)({"params": params}, BATCH), quick_jit(plain.predict)(base, BATCH)
    )


def test_merged_kernels_compute_the_same_as_adapters(gpt):
    plain, adapted, params = gpt
    params = filled(params)
    merged = {"params": merge(params, ADAPTERS)}
    logits_BTV = quick_jit(adapted.predict)({"params": params}, BATCH)
    np.testing.assert_allclose(logits_BTV, quick_jit(plain.predict)(merged, BATCH), atol=1e-5)
    assert np.abs(logits_BTV - quick_jit(plain.predict)({"params": params}, BATCH)).max() > 0.01
    # The decoder reads the prompt with the adapters, too.
    cache = adapted.decoder.empty(4, 8)
    last_BV, _ = quick_jit(adapted.decoder.extend)(
        {"params": params}, cache, TOKENS_BT, np.ones((4, 8), bool)
    )
    np.testing.assert_allclose(last_BV, logits_BTV[:, -1], atol=1e-5)


def test_a_merged_kernel_is_the_papers_formula(gpt):
    _, _, params = gpt
    params = filled(params)
    is_scanned = "layer" in params["layers"]
    layer = jax.tree.map(lambda leaf: leaf[1], params["layers"]["layer"]) if is_scanned else None
    query = (layer or params["layers"]["layer1"])["attention"]["query"]
    expected = query["kernel"] + 6 / 2 * np.asarray(query["lora_a"]) @ np.asarray(query["lora_b"])
    merged = merge(params, ADAPTERS)["layers"]
    kernel = merged["layer"]["attention"]["query"]["kernel"][1] if is_scanned else None
    kernel = merged["layer1"]["attention"]["query"]["kernel"] if kernel is None else kernel
    np.testing.assert_allclose(kernel, expected, atol=1e-6)
    assert np.abs(query["lora_a"]).max() <= 8**-0.5
    assert "lora_a" not in (layer or params["layers"]["layer1"])["attention"]["key"]


@pytest.mark.slow
def test_a_convolution_merges_into_its_kernel():
    adapters = LoRA(patterns=("^conv", "head"), rank=2)
    plain = task.classification(Image())
    adapted = with_lora(plain, adapters)
    params = filled(quick_jit(adapted.init)(jax.random.key(0), IMAGES)["params"])
    assert params["conv"]["lora_a"].shape == (3, 3, 3, 2)
    assert params["conv"]["lora_b"].shape == (2, 6)
    predict = quick_jit(plain.predict)
    logits = quick_jit(adapted.predict)({"params": params}, IMAGES)
    np.testing.assert_allclose(logits, predict({"params": merge(params, adapters)}, IMAGES), atol=1e-5)
    assert np.abs(logits - predict({"params": params}, IMAGES)).max() > 0.01


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("haed", "the pattern 'haed' matches no kernel; near paths are head/kernel"),
        ("general", "general/kernel is no kernel of nn.Dense or nn.Conv"),
        ("grouped", "grouped/kernel cannot have adapters, as its channels have groups"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused(pattern, message):
    adapted = with_lora(task.classification(Image()), LoRA(patterns=(pattern,)))
    with pytest.raises(UserError, match=message):
        jax.eval_shape(adapted.init, jax.random.key(0), IMAGES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1}, "dropout"),
        ({"patterns": "q"}, "tuple"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        LoRA(**options)


def test_only_adapters_and_what_is_named_are_trained(gpt):
    _, _, params = gpt
    trained, _ = split(params, ADAPTERS.frozen)
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(trained)} == {"lora_a", "lora_b"}
    with_norm, _ = split(params, LoRA(trained=("^final_norm/",)).frozen)
    assert set(with_norm) == {"layers", "final_norm"}
    state = optimizers.adamw(1e-3).init(trained)
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim > 1) == 2 * sum(
        leaf.size for leaf in jax.tree.leaves(trained)
    )


def test_adapters_are_saved_with_their_configuration_and_fit_the_same_base_only(gpt, tmp_path):
    plain, _, params = gpt
    params = filled(params)
    adapters = LoRA(patterns=ADAPTERS.patterns, rank=2, alpha=6, trained=("^final_norm/",))
    file = tmp_path / "adapters.safetensors"
    save_adapters(file, params, adapters)
    base = quick_jit(plain.init)(jax.random.key(0), BATCH)["params"]
    loaded, same = load_adapters(file, base)
    assert same == adapters
    chex.assert_trees_all_equal(loaded, params)
    stacked = GPT.clone(is_scanned="layer" not in base["layers"])
    other = jax.eval_shape(stacked.init, jax.random.key(0), TOKENS_BT)["params"]
    with pytest.raises(UserError, match=r"holds layers/layer.*/lora_a, and the model has no layers/layer"):
        load_adapters(file, other)
    wide = GPT.clone(dim=12, is_scanned="layer" in base["layers"])
    other = jax.eval_shape(wide.init, jax.random.key(0), TOKENS_BT)["params"]
    with pytest.raises(
        UserError, match=r"with shape .* and rank 2, and the model has .* with shape"
    ) as error:
        load_adapters(file, other)
    assert "\n" not in str(error.value)
    for use in (lambda params, adapters: save_adapters(file, params, adapters), merge):
        with pytest.raises(UserError, match="the parameters hold no adapters"):
            use(base, adapters)
        with pytest.raises(UserError, match="adapters of rank 2, and the configuration has rank=3"):
            use(params, LoRA(rank=3))


def test_another_safetensors_file_holds_no_adapters(tmp_path):
    from dl.models.weights.files import save_safetensors

    save_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(2)})
    with pytest.raises(UserError, match="does not hold adapters"):
        load_adapters(tmp_path / "a.safetensors", {})


@pytest.mark.slow
def test_dropout_is_on_in_training_only():
    plain = task.language_model(GPT.clone(is_scanned=True, remat="layers"))
    adapted = with_lora(plain, LoRA(patterns=("query", "out"), rank=2, dropout=0.5))
    params = filled(quick_jit(adapted.init)(jax.random.key(0), BATCH)["params"])

    def loss(adapted, key):
        compute = quick_jit(lambda key: adapted.loss(params, {}, BATCH, key)[0].compute())
        return float(compute(key))

    certain = with_lora(plain, LoRA(patterns=("query", "out"), rank=2))
    assert loss(adapted, None) == loss(certain, None)
    drawn = {loss(adapted, jax.random.key(number)) for number in range(3)}
    assert len(drawn) == 3
    assert loss(certain, jax.random.key(0)) == pytest.approx(loss(certain, None), rel=1e-6)


@pytest.mark.slow
def test_training_moves_only_adapters_on_eight_devices(mesh8):
    tokens = np.tile(np.arange(8, dtype=np.int32), (32, 1))
    splits = {name: ArraySource({"tokens": tokens}) for name in ("validation", "test")}
    plain = task.language_model(GPT)
    base = quick_jit(plain.init)(jax.random.key(3), BATCH)
    result = train(
        Experiment(
            data=ArraySplits("count", train=ArraySource({"tokens": tokens}), evaluations=splits),
            task=with_lora(plain, ADAPTERS),
            frozen=ADAPTERS.frozen,
            warm_start=base,
            tx=optimizers.adam(3e-2),
            num_steps=10,
            batch_size=16,
            grad_fn=accumulated_gradient(2),
        ),
        mesh=mesh8,
        log_every=1,
    )
    losses = [row["loss"] for row in result.history if row["kind"] == "train"]
    assert losses[-1] < losses[0] - 0.05
    without = dict(jax.tree_util.tree_leaves_with_path(base["params"]))
    trained = dict(jax.tree_util.tree_leaves_with_path(result.params))
    assert len(trained) > len(without)
    for path, leaf in without.items():
        np.testing.assert_array_equal(trained[path], leaf)
