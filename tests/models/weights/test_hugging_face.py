"""Language models in the layout of Hugging Face, from files that are made here, without `transformers`."""

import json
import sys
import types

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dl.errors import UserError
from dl.models.bert import BERT, BERTForMaskedLM
from dl.models.blocks.positions import Rotary
from dl.models.gpt2 import GPT2
from dl.models.llama import Llama
from dl.models.t5 import T5
from dl.models.transfer import WithHead
from dl.models.weights.hugging_face import load_model, pretrained_model, save_model

pytest.importorskip("safetensors", reason="needs the extra 'weights'")
from safetensors.numpy import load_file, save_file

GPT2_MODEL = GPT2(vocab_size=11, max_length=6, dim=8, num_layers=2, num_heads=2, dropout=0.1)
LLAMA_MODEL = Llama(11, 8, 2, 2, 12, num_kv_heads=1, rotary=Rotary(5e5, (8.0, 1.0, 4.0, 64)))
QWEN_MODEL = Llama(11, 8, 2, 2, 12, num_kv_heads=1, head_dim=6, has_qk_norm=True, is_tied=True, epsilon=1e-6)
BERT_MODEL = BERT(11, 6, 8, 2, 2, 12, dropout=0.1)
T5_MODEL = T5(11, 8, 2, 2, 4, 12, is_gated=True, is_tied=False, dropout=0.1)
MODELS = {
    "gpt2": GPT2_MODEL,
    "llama": LLAMA_MODEL,
    "qwen3": QWEN_MODEL,
    "t5": T5_MODEL,
    "bert": BERT_MODEL.clone(pooling="first"),
    "masked": BERTForMaskedLM(BERT_MODEL),
    "head": WithHead(BERT_MODEL.clone(pooling="first"), 3, dropout=0.2),
}
TOKENS = jnp.zeros((1, 3), jnp.int32)
CONFIG = {"model_type": "gpt2", "vocab_size": 11, "n_positions": 6, "n_embd": 8, "n_layer": 2, "n_head": 2}


def shapes_of(model):
    inputs = (TOKENS, None, TOKENS) if isinstance(model, T5) else (TOKENS,)
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)


def filled(model, dtype=np.float32):
    """Returns random variables in a dtype."""
    shapes, random = shapes_of(model), np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(dtype), shapes)


def gpt2_tensors():
    """Returns what `GPT2Model` stores: without the prefix, with the constant masks of old versions."""
    shapes = {"wte.weight": (11, 8), "wpe.weight": (6, 8), "ln_f.weight": (8,), "ln_f.bias": (8,)}
    for number in range(2):
        for name, inputs, outputs in (
            ("attn.c_attn", 8, 24),
            ("attn.c_proj", 8, 8),
            ("mlp.c_fc", 8, 32),
            ("mlp.c_proj", 32, 8),
        ):
            shapes[f"h.{number}.{name}.weight"] = inputs, outputs
            shapes[f"h.{number}.{name}.bias"] = (outputs,)
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{number}.{name}.{leaf}": (8,) for leaf in ("weight", "bias")}
        shapes[f"h.{number}.attn.bias"] = 1, 1, 6, 6
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, tensors=None, **config):
    save_file(gpt2_tensors() if tensors is None else tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def test_a_base_model_is_read_with_its_fused_tensor_in_three_parts(tmp_path):
    tensors = gpt2_tensors()
    model, variables = load_model(write(tmp_path))
    assert model == GPT2_MODEL
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, shapes_of(model))
    attention = variables["params"]["layers"]["layer1"]["attention"]
    for number, part in enumerate(("query", "key", "value")):
        for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
            columns = tensors[f"h.1.attn.c_attn.{theirs}"][..., 8 * number : 8 * number + 8]
            np.testing.assert_array_equal(attention[part][ours], columns)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_round_trip_keeps_every_bit_and_the_model(tmp_path, name, dtype):
    model = MODELS[name]
    variables = filled(model, dtype)
    save_model(tmp_path, model, variables)
    same, loaded = load_model(tmp_path)
    assert type(same) is type(model)
    if dtype is np.float32:
        assert same == model
    else:
        base = getattr(same, "backbone", getattr(same, "encoder", same)) if name not in ("t5",) else same
        assert np.dtype(base.dtype) == np.dtype(dtype)
    chex.assert_trees_all_equal(loaded, variables)
    chex.assert_trees_all_equal_dtypes(loaded, variables)


def test_a_linear_layer_of_pytorch_is_transposed(tmp_path):
    variables = filled(LLAMA_MODEL)
    save_model(tmp_path, LLAMA_MODEL, variables)
    tensors = load_file(tmp_path / "model.safetensors")
    up = variables["params"]["layers"]["layer1"]["feed_forward"]["in"]["kernel"]
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.up_proj.weight"], up.T)
    assert tensors["lm_head.weight"].shape == (11, 8)


def test_shards_are_written_and_read(tmp_path):
    variables = filled(LLAMA_MODEL)
    save_model(tmp_path, LLAMA_MODEL, variables, max_shard_bytes=2_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(sum(array.nbytes for array in load_file(file).values()) <= 2_000 for file in files)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    chex.assert_trees_all_equal(load_model(tmp_path)[1], variables)


def test_scanned_layers_are_stored_as_layers(tmp_path):
    scanned = GPT2_MODEL.clone(is_scanned=True)
    variables = filled(scanned)
    save_model(tmp_path, scanned, variables)
    again, loaded = load_model(tmp_path, is_scanned=True)
    assert again == scanned
    chex.assert_trees_all_equal(loaded, variables)
    _, plain = load_model(tmp_path)
    np.testing.assert_array_equal(
        plain["params"]["layers"]["layer1"]["attention"]["out"]["kernel"],
        variables["params"]["layers"]["layer"]["attention"]["out"]["kernel"][1],
    )
    start = pretrained_model(tmp_path)(shapes_of(scanned))
    chex.assert_trees_all_equal(start, variables)


def test_the_tokenizer_and_the_special_tokens_stay(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    write(source, eos_token_id=7, n_ctx=3)
    (source / "tokenizer.json").write_text("{}")
    model, variables = load_model(source)
    save_model(target, model, variables, like=source)
    assert (target / "tokenizer.json").read_text() == "{}"
    config = json.loads((target / "config.json").read_text())
    assert config["eos_token_id"] == 7
    assert "n_ctx" not in config
    with pytest.raises(UserError, match=r"the variables hold wte and no params"):
        save_model(tmp_path / "other", model, {"wte": np.zeros(1)})
    with pytest.raises(UserError, match=r"target holds a model already \(model.safetensors\)"):
        save_model(target, model, variables)


def test_a_dtype_is_that_of_parameters_and_computation(tmp_path):
    model, variables = load_model(write(tmp_path), dtype=jnp.bfloat16, dropout=0.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.bfloat16)}
    assert model == GPT2_MODEL.clone(dtype=np.dtype(jnp.bfloat16), dropout=0.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu', which dl does not compute"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"attn_pdrop": 0.3}, "embd_pdrop=0.1, attn_pdrop=0.3; models of dl have one number for all"),
        ({"n_embd": "8"}, "n_embd='8'; it must be a positive integer"),
        ({"model_type": "gptx"}, "model_type='gptx'; load_model reads gpt2, llama, mistral, qwen3, bert, t5"),
        ({"n_positions": 9}, r"'transformer.wpe.weight' has shape \(6, 8\) as params/position_embedding"),
        ({"n_embd": 10}, r"'transformer.h.0.attn.c_attn.bias' has shape \(8,\) as params/layers/layer0"),
        ({"n_layer": 3}, "no tensor for params/layers/layer2/attention/key/bias and 15 more"),
        ({"n_layer": 1}, "'h.1.attn.c_attn.bias' does not belong to the GPT2 that its config.json describes"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name_and_value(tmp_path, config, message):
    with pytest.raises(UserError, match=message) as error:
        load_model(write(tmp_path, **config))
    assert "\n" not in str(error.value)


LLAMA_CONFIG = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2}},
            "rope_type='dynamic', which dl does not",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "'llama3' without low_freq_factor"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window=4096"),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"]}, "'sliding_attention' in layer_types"),
    ],
)
def test_a_network_that_is_not_ours_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_CONFIG | config))
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "no BERT with pooling='mean'"),
        ({"rotary": Rotary()}, r"learned positions .* rotary=Rotary\(base=10000.0, stretch=None\)"),
        ({"is_norm_first": True}, "norms after the sums.* is_norm_first=True"),
    ],
)
def test_a_bert_that_the_layout_has_not_is_refused(tmp_path, options, message):
    model = BERT_MODEL.clone(**options)
    with pytest.raises(UserError, match=message):
        save_model(tmp_path / "target", model, filled(model))
    assert not (tmp_path / "target").exists()


def test_a_tied_head_must_equal_the_embeddings(tmp_path):
    tensors = {f"transformer.{name}": tensor for name, tensor in gpt2_tensors().items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()
    load_model(write(tmp_path, tensors))
    tensors["lm_head.weight"][3, 4] += 1
    with pytest.raises(UserError, match=r"'lm_head.weight' and 'wte.weight' differ"):
        load_model(write(tmp_path, tensors))
    # Where files hold only the head, it is the embeddings.
    del tensors["transformer.wte.weight"]
    _, variables = load_model(write(tmp_path, tensors))
    np.testing.assert_array_equal(
        variables["params"]["token_embedding"]["embedding"], tensors["lm_head.weight"]
    )


def test_a_warm_start_skips_the_head_and_leaves_adapters(tmp_path):
    save_model(tmp_path, LLAMA_MODEL, filled(LLAMA_MODEL, ml_dtypes.bfloat16))
    model = LLAMA_MODEL.clone(is_tied=False)
    shapes = shapes_of(model)
    shapes["params"]["head"]["kernel"] = jax.ShapeDtypeStruct((8, 3), np.float32)
    shapes["params"]["layers"]["layer0"]["attention"]["query"]["lora_a"] = shapes["params"]["head"]["kernel"]
    with pytest.raises(UserError, match=r"'lm_head.weight' has shape \(8, 11\)"):
        pretrained_model(tmp_path)(shapes)
    start = pretrained_model(tmp_path, skip=["head"])(shapes)["params"]
    assert set(start) == {"token_embedding", "layers", "final_norm"}
    assert set(start["layers"]["layer0"]["attention"]["query"]) == {"kernel"}
    assert start["final_norm"]["scale"].dtype == np.float32  # that of the model, not of the file
    nested = pretrained_model(tmp_path, skip=["head"], under="base")({"params": {"base": shapes["params"]}})
    chex.assert_trees_all_equal(nested["params"]["base"], start)
    with pytest.raises(UserError, match="under='bose' is not a module of the model; it must be one of base"):
        pretrained_model(tmp_path, under="bose")({"params": {"base": shapes["params"]}})
    with pytest.raises(UserError, match="skip='haed' is neither a module of the model nor of"):
        pretrained_model(tmp_path, skip=["haed"])(shapes)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_names_of_labels_stay_where_they_fit(tmp_path, num_classes):
    source, model = tmp_path / "source", WithHead(BERT_MODEL.clone(pooling="first"), num_classes)
    save_model(source, MODELS["head"], filled(MODELS["head"]))
    config = json.loads((source / "config.json").read_text())
    names = {"0": "no", "1": "yes", "2": "maybe"}
    (source / "config.json").write_text(json.dumps(config | {"id2label": names}))
    save_model(tmp_path / "target", model, filled(model), like=source)
    labels = json.loads((tmp_path / "target" / "config.json").read_text())["id2label"]
    assert labels == (names if num_classes == 3 else {"0": "LABEL_0", "1": "LABEL_1"})


@pytest.mark.parametrize("pooling", [None, "first"])
def test_a_classifier_starts_from_a_bert_with_other_heads_and_old_names(tmp_path, pooling):
    """As bert-base-uncased is stored: with all heads of pre-training, and norms named as in TensorFlow."""
    masked = filled(BERTForMaskedLM(BERT_MODEL))
    save_model(tmp_path, BERTForMaskedLM(BERT_MODEL), masked)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name in list(tensors):
        new = name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
        tensors[new] = tensors.pop(name)
    tensors["cls.seq_relationship.weight"] = np.zeros((2, 8), np.float32)
    pooler = {"bert.pooler.dense.weight": np.ones((8, 8)), "bert.pooler.dense.bias": np.ones(8)}
    save_file(tensors | {name: np.float32(array) for name, array in pooler.items()}, file)
    chex.assert_trees_all_equal(load_model(tmp_path)[1], masked)
    model = WithHead(BERT_MODEL.clone(pooling=pooling, is_scanned=True), 3)
    start = pretrained_model(tmp_path, skip=["head"])(shapes_of(model))["params"]
    assert set(start) == {"backbone"}
    assert ("pooler" in start["backbone"]) == (pooling == "first")
    np.testing.assert_array_equal(
        start["backbone"]["layers"]["layer"]["attention_norm"]["scale"][1],
        masked["params"]["encoder"]["layers"]["layer1"]["attention_norm"]["scale"],
    )
    nested = pretrained_model(tmp_path, under="backbone")(shapes_of(model))["params"]
    chex.assert_trees_all_equal(nested, start)


def test_a_name_on_the_hub_is_fetched_with_its_config_and_tokenizer(tmp_path, monkeypatch):
    write(tmp_path)
    asked = {}

    def snapshot_download(name, *, revision, allow_patterns):
        asked[name] = revision, allow_patterns
        return str(tmp_path)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    model, _ = load_model("someone/gpt2", revision="abc")
    assert model == GPT2_MODEL
    revision, patterns = asked["someone/gpt2"]
    assert revision == "abc"
    assert {"*.safetensors", "config.json", "tokenizer.json", "merges.txt"} <= set(patterns)
    with pytest.raises(UserError, match="there is no file or folder nowhere, and it is not a name"):
        load_model("nowhere")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="has no config.json, which describes the model"):
        load_model(tmp_path)


def test_variables_of_another_model_are_not_written(tmp_path):
    variables = filled(LLAMA_MODEL)
    with pytest.raises(UserError, match="the model has no head/kernel"):
        save_model(tmp_path / "a", LLAMA_MODEL.clone(is_tied=True), variables)
    del variables["params"]["final_norm"]
    with pytest.raises(UserError, match="the variables lack final_norm/scale of the model"):
        save_model(tmp_path / "a", LLAMA_MODEL, variables)
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="GPT2 has no attribute is_scand; it has vocab_size,"):
        load_model(write(tmp_path), is_scand=True)
