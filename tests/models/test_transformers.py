"""What holds for every family of Transformers: what a token sees, decoding with a cache, scanned layers."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl.errors import UserError
from dl.models import bert, gpt2, llama, t5, transformer
from dl.models.blocks.encoder_decoder import EncoderDecoder
from dl.models.blocks.positions import Rotary
from dl.models.blocks.scan import stack_layers
from dl.models.transfer import WithHead
from dl.task import as_model
from dl.training.state import num_params
from tests.helpers import quick_jit

VOCAB, BATCH, LENGTH, SOURCE_LENGTH = 30, 3, 10, 9
SMALL = {"dim": 16, "num_layers": 2, "num_heads": 4, "hidden_dim": 24}

MODELS = {
    "gpt2": gpt2.GPT2(VOCAB, max_length=12, **SMALL),
    "llama": llama.Llama(VOCAB, num_kv_heads=2, has_qk_norm=True, **SMALL),
    "t5": t5.T5(VOCAB, num_buckets=8, max_distance=6, **SMALL),
    "t5 1.1": t5.T5(VOCAB, head_dim=6, is_gated=True, is_tied=False, **SMALL),
    "transformer": transformer.Transformer(VOCAB, max_length=12, **SMALL),
    "pre-norm transformer": transformer.Transformer(VOCAB, max_length=12, is_norm_first=True, **SMALL),
    "bert": bert.BERTForMaskedLM(bert.BERT(VOCAB, max_length=12, **SMALL)),
    "rotary bert": bert.BERTForMaskedLM(
        bert.BERT(VOCAB, max_length=12, rotary=Rotary(), is_norm_first=True, **SMALL)
    ),
}
DECODERS = ["gpt2", "llama", "t5", "transformer"]
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
# This one is tested by `pytest` alone, and the others with the slow tests.
FAST = ("gpt2",)


def each(names, fast=FAST):
    """Runs a test for each model; those that are not in `fast` are slow."""
    marks = {name: [] if name in fast else [pytest.mark.slow] for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name]) for name in names])


random = np.random.default_rng(0)
TOKENS = random.integers(1, VOCAB, (BATCH, LENGTH))
SOURCE = random.integers(1, VOCAB, (BATCH, SOURCE_LENGTH))

quick_key = functools.partial(jax.random.key, impl="rbg")  # its numbers are quick to compile


def with_options(model, **options):
    """Returns a copy of a model with other attributes."""
    if isinstance(model, bert.BERTForMaskedLM):
        return bert.BERTForMaskedLM(model.encoder.clone(**options))
    return model.clone(**options)


def is_seq2seq(model):
    return isinstance(model, EncoderDecoder)


def inputs_of(model, tokens=TOKENS, segment_ids=None, source=SOURCE, source_segment_ids=None):
    if is_seq2seq(model):
        return source, source_segment_ids, tokens, segment_ids
    return tokens, segment_ids


@functools.cache
def params_of(name):
    """Returns random parameters none of which is zero or one, so that nothing hides."""
    model = MODELS[name]
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs_of(model))["params"]
    leaves, structure = jax.tree.flatten(shapes)
    generator = np.random.default_rng(1)
    values = [generator.normal(0.5 if leaf.ndim == 1 else 0, 0.3, leaf.shape) for leaf in leaves]
    return jax.tree.unflatten(structure, [jnp.asarray(value, jnp.float32) for value in values])


def influences(name, inputs):
    """Returns how strongly the logits at each position depend on each embedded token of each sequence.

    Returns arrays of shapes T × T and, for a model that reads a source, T × S: the largest derivative of a
    random projection of the logits.
    """
    model, params = MODELS[name], params_of(name)
    projection = jax.random.normal(jax.random.key(1), (VOCAB,))

    def projected(noises):
        def add(embed, args, kwargs, context):
            embedded = embed(*args, **kwargs)
            is_meant = context.module.name == "token_embedding" and context.method_name == "__call__"
            return embedded + noises[embedded.shape[1]] if is_meant else embedded

        with nn.intercept_methods(add):
            return (model.apply({"params": params}, *inputs) @ projection)[0]

    lengths = (LENGTH, SOURCE_LENGTH) if is_seq2seq(model) else (LENGTH,)
    noises = {length: jnp.zeros((1, length, SMALL["dim"])) for length in lengths}
    jacobians = quick_jit(jax.jacrev(projected))(noises)
    return [np.abs(jacobians[length][:, 0]).max(-1) for length in lengths]


@each(["gpt2", "t5"], fast=())
def test_a_decoder_depends_on_no_later_token(name):
    found_TT = influences(name, inputs_of(MODELS[name], TOKENS[:1], source=SOURCE[:1]))[0]
    assert ((found_TT > 0) == np.tril(np.ones((LENGTH, LENGTH), bool))).all()


@pytest.mark.slow
@each([*DECODERS, "bert", "rotary bert"])
def test_tokens_see_the_earlier_ones_of_their_own_sequence_and_all_of_its_source(name):
    segment_ids, source_ids = np.repeat([[1, 2, 0]], [3, 5, 2], 1), np.repeat([[1, 2, 0]], [4, 4, 1], 1)
    inputs = inputs_of(MODELS[name], TOKENS[:1], segment_ids, SOURCE[:1], source_ids)
    found_TT, *found_TS = influences(name, inputs)
    is_same_TT = segment_ids == segment_ids.T
    assert ((found_TT > 0) == (is_same_TT if "bert" in name else np.tril(is_same_TT))).all()
    assert all(((found > 0) == (source_ids == segment_ids.T)).all() for found in found_TS)


def lengths_and_masks():
    """Returns the lengths of three rows, and masks of tokens with padding after them and before them."""
    lengths = np.array([7, 4, 6])
    after = np.arange(7) < lengths[:, None]
    return lengths, [after, after[:, ::-1]]


@each([*DECODERS, "scanned gpt2", "scanned t5"])
def test_decoding_with_a_cache_equals_reading_everything_again(name):
    is_scanned, name = name.startswith("scanned"), name.removeprefix("scanned ")
    model, params = MODELS[name], params_of(name)
    if is_scanned:
        model, params = with_options(model, is_scanned=True), stack_layers(params)
    variables, decoder = {"params": params}, as_model(model).decoder
    lengths, masks = lengths_and_masks()
    source_mask = np.arange(SOURCE_LENGTH) < np.array([9, 5, 7])[:, None]
    inputs = inputs_of(model, source_segment_ids=source_mask)
    expected_BTV = np.asarray(quick_jit(model.apply)(variables, *inputs))
    extend = quick_jit(decoder.extend)
    for mask in masks:
        cache = decoder.empty(BATCH, LENGTH)
        if decoder.encode is not None:
            cache = quick_jit(decoder.encode)(variables, cache, SOURCE, source_mask)
        prompt = np.zeros(mask.shape, int)
        prompt[mask] = np.concatenate([TOKENS[row, :length] for row, length in enumerate(lengths)])
        logits_BV, cache = extend(variables, cache, prompt, mask)
        rows = np.arange(BATCH)
        for step in range(3):
            np.testing.assert_allclose(logits_BV, expected_BTV[rows, lengths + step - 1], atol=1e-4)
            if step == 2:
                break
            token = TOKENS[rows, lengths + step][:, None]
            logits_BV, cache = extend(variables, cache, token, np.ones((BATCH, 1), bool))
        np.testing.assert_array_equal(cache.lengths_B, lengths + 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("gpt2", [(True, "none"), (False, "layers"), (True, "layers"), (True, "dots")]),
        ("t5", [(True, "dots")]),
        ("bert", [(True, "layers")]),
    ],
)
def test_scanned_and_rematerialized_layers_compute_the_same(name, variants):
    model, params = MODELS[name], params_of(name)
    inputs = inputs_of(model)
    projection = jax.random.normal(jax.random.key(1), (VOCAB,))

    def value_and_gradient(is_scanned, remat):
        variant = with_options(model, is_scanned=is_scanned, remat=remat)

        def projected(params):
            params = stack_layers(params) if is_scanned else params
            return (variant.apply({"params": params}, *inputs, train=True) @ projection).mean()

        return quick_jit(jax.value_and_grad(projected))(params)

    expected = jax.tree.leaves(value_and_gradient(False, "none"))
    for variant in variants:
        found = jax.tree.leaves(value_and_gradient(*variant))
        for new, old in zip(found, expected, strict=True):
            np.testing.assert_allclose(new, old, atol=1e-5, rtol=1e-4)


@each(["gpt2", "t5", "transformer", "bert", "rotary bert"])
def test_dropout_is_on_in_training_alone(name):
    options = {"dropout": 0.5} | ({"attention_dropout": 0.5} if "transformer" in name else {})
    plain = with_options(MODELS[name], is_scanned=True)
    model = with_options(plain, **options)
    inputs, variables = inputs_of(model), {"params": stack_layers(params_of(name))}
    # The program of the evaluation is the same, to the letter, as without dropout.
    program = re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(model.apply)(variables, *inputs)))
    assert program == re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(plain.apply)(variables, *inputs)))
    assert "random_bits" not in program
    apply = quick_jit(lambda key: model.apply(variables, *inputs, train=True, rngs={"dropout": key}))
    outputs = [np.asarray(apply(quick_key(seed))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 0.01


@each([*MODELS], fast=("llama",))
def test_computation_is_in_16_bits_and_softmax_and_parameters_are_in_32(name):
    model = with_options(MODELS[name], dtype=jnp.bfloat16)
    inputs = inputs_of(model)
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def everything(variables, cache, tokens):
        logits_BTV = model.apply(variables, *inputs)
        return logits_BTV, decoder and decoder.extend(variables, cache, tokens, tokens > 0)

    decoder = as_model(model).decoder
    cache = None
    if decoder is not None:
        cache = decoder.empty(BATCH, LENGTH)
        if decoder.encode is not None:
            cache = jax.eval_shape(decoder.encode, variables, cache, SOURCE, SOURCE > 0)
        assert jax.tree.leaves(cache)[0].dtype == jnp.bfloat16
    closed = jax.make_jaxpr(everything)(variables, cache, TOKENS)
    assert closed.out_avals[0].dtype == jnp.bfloat16
    exponentials = re.findall(r":(\w+)\[[\d,]*\] = exp ", str(closed))
    assert set(exponentials) == {"f32"}
    # Norms and softmax aside, matrices are multiplied in 16 bits.
    assert re.search(r":bf16\[[\d,]*\] = dot_general", str(closed))


@pytest.mark.parametrize("name", ["gpt2", "transformer", "bert"])
def test_a_sequence_that_is_too_long_is_one_clear_error(name):
    long = np.ones((1, 13), int)
    message = "a sequence of 13 tokens is longer than the 12 that the model can read"
    model = MODELS[name]
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), *inputs_of(model, long, source=long))
    if as_model(model).decoder is not None:
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs_of(model))
        decoder = as_model(model).decoder
        with pytest.raises(UserError, match=message):
            jax.eval_shape(decoder.extend, variables, decoder.empty(1, 13), long[:, :1], long[:, :1] > 0)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        # The sizes of the published checkpoints.
        (gpt2.gpt2_small, 124_439_808),
        slow(gpt2.gpt2_medium, 354_823_168),
        slow(gpt2.gpt2_large, 774_030_080),
        slow(gpt2.gpt2_xl, 1_557_611_200),
        slow(functools.partial(bert.bert_tiny, pooling="first"), 4_385_920),
        (functools.partial(bert.bert_base, pooling="first"), 109_482_240),
        slow(functools.partial(bert.bert_large, pooling="first"), 335_141_888),
        slow(functools.partial(bert.bert_tiny, pooling=None), 4_369_408),
        slow(functools.partial(bert.bert_base, pooling=None), 108_891_648),
        slow(functools.partial(bert.bert_large, pooling=None), 334_092_288),
        (t5.t5_small, 60_506_624),
        slow(t5.t5_base, 222_903_552),
        slow(t5.t5_v1_1_small, 76_961_152),
        slow(t5.t5_v1_1_base, 247_577_856),
        slow(functools.partial(llama.Llama, 32_000, 4096, 32, 32, 11_008), 6_738_415_616),
    ],
)
def test_parameter_counts(model, count):
    built = model(is_scanned=True)
    token = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(built.init, jax.random.key(0), *inputs_of(built, token, source=token))
    assert num_params(shapes["params"]) == count


def test_bert_pools_the_first_token_or_the_mean_of_those_that_are_not_padding():
    encoder = MODELS["bert"].encoder.clone(num_layers=0)
    params = params_of("bert")["encoder"]
    mask = np.arange(LENGTH) < np.array([10, 4, 0])[:, None]
    types = random.integers(0, 2, TOKENS.shape)
    pooler = {"kernel": random.normal(size=(16, 16)), "bias": random.normal(size=16)}

    def outputs(pooling):
        model = encoder.clone(pooling=pooling)
        return quick_jit(model.apply)({"params": params | {"pooler": pooler}}, TOKENS, mask, None, types)

    hidden_BTD = np.asarray(outputs(None))
    first_BD = np.tanh(hidden_BTD[:, 0] @ pooler["kernel"] + pooler["bias"])
    np.testing.assert_allclose(outputs("first"), first_BD, atol=1e-5)
    mean_BD = [hidden_BTD[0].mean(0), hidden_BTD[1, :4].mean(0), np.zeros(16)]
    np.testing.assert_allclose(outputs("mean"), mean_BD, atol=1e-5)
    with pytest.raises(ValueError, match="pooling='mean'"):
        bert.BERTForMaskedLM(encoder.clone(pooling="mean")).init(jax.random.key(0), TOKENS)


def test_a_rotary_bert_sees_distances_and_no_positions():
    encoder = MODELS["rotary bert"].encoder.clone(max_length=2 * LENGTH)
    params = params_of("rotary bert")["encoder"]
    assert "position_embedding" not in params
    shifted = np.concatenate([TOKENS[:, ::-1], TOKENS], axis=1)
    segments = np.repeat([[1, 2]], LENGTH, axis=1).repeat(BATCH, axis=0)
    alone = encoder.apply({"params": params}, TOKENS)
    positions = np.broadcast_to(np.arange(2 * LENGTH), shifted.shape)
    behind = encoder.apply({"params": params}, shifted, segments, positions)
    np.testing.assert_allclose(behind[:, LENGTH:], alone, atol=1e-5)
    assert np.abs(encoder.apply({"params": params}, TOKENS[:, ::-1])[:, ::-1] - alone).max() > 0.01


def test_a_head_on_bert_classifies_texts_or_tokens():
    encoder = MODELS["bert"].encoder
    for pooling, shape in (("first", (BATCH, 5)), (None, (BATCH, LENGTH, 5))):
        model = WithHead(encoder.clone(pooling=pooling), 5)
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), TOKENS, TOKENS > 0)
        assert logits.shape == shape


@each(["gpt2", "t5", "t5 1.1", "transformer"], fast=())
def test_a_new_model_is_about_as_good_as_a_uniform_one(name):
    """The initial scales are right: the logits are of order one and the loss is near the logarithm of V."""
    model = with_options(MODELS[name], dim=64, hidden_dim=None, is_scanned=True)
    logits_BTV, _ = quick_jit(model.init_with_output)(quick_key(0), *inputs_of(model))
    targets = random.integers(0, VOCAB, TOKENS.shape)
    loss = -np.take_along_axis(jax.nn.log_softmax(logits_BTV), targets[..., None], -1).mean()
    assert abs(loss - np.log(VOCAB)) < 1.5
