"""Transformers equal those of `transformers` and PyTorch with the same random weights.

pip install -e '.[dev,peers]'; nothing is downloaded. Unpadded sequences of the models with published weights
are compared in `test_weights_huggingface`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl.models.blocks.positions import RelativeBias, Rotary
from dl.models.transformer import Transformer
from dl.models.weights.hugging_face import load_model
from dl.task import as_model
from tests.helpers import quick_jit

# Their warnings are not ours.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

BATCH, LENGTH, VOCAB = 3, 12, 23
TOKENS = np.random.default_rng(0).integers(1, VOCAB, (BATCH, LENGTH))
LENGTHS = np.array([12, 5, 8])
PADDED_AFTER = np.int32(np.arange(LENGTH) < LENGTHS[:, None])
PADDED_BEFORE = PADDED_AFTER[:, ::-1].copy()


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs the extra 'peers'")


@pytest.fixture(scope="module")
def transformers(torch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("transformers", reason="needs the extra 'peers'")


def randomized(module):
    """Sets every weight so that none is a default and the outputs depend on the inputs."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if tensor.ndim == 1:
                tensor.normal_(0 if name.endswith("bias") else 1, 0.2, generator=generator)
            else:
                tensor.normal_(0, 1.5 * tensor.shape[-1] ** -0.5, generator=generator)
    return module.eval()


NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None}
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    **NO_SPECIAL_TOKENS,
}
STRETCH = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def decoder_of(transformers, name):
    if name == "gpt2":
        sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4}
        config = transformers.GPT2Config(vocab_size=VOCAB, **sizes, **NO_SPECIAL_TOKENS)
        return transformers.GPT2LMHeadModel(config)
    if name == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA, head_dim=6))
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "original_max_position_embeddings": 16, **STRETCH}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, rope_parameters=rope))


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_decoders_read_padded_rows_and_extend_them_as_transformers_does(transformers, torch, tmp_path, name):
    theirs = randomized(decoder_of(transformers, name))
    theirs.save_pretrained(tmp_path)
    model, variables = load_model(tmp_path)
    apply, decoder = quick_jit(model.apply), as_model(model).decoder
    extend = quick_jit(decoder.extend)
    for mask in (PADDED_AFTER, PADDED_BEFORE):
        with torch.no_grad():
            positions = np.maximum(mask.cumsum(1) - 1, 0)
            inputs = {"input_ids": TOKENS, "attention_mask": mask, "position_ids": positions}
            expected = theirs(**{name: torch.tensor(x) for name, x in inputs.items()}).logits.numpy()
        assert expected[mask > 0].std(0).mean() > 0.1  # logits that no token moves would prove nothing
        logits = np.asarray(apply(variables, TOKENS, mask))
        np.testing.assert_allclose(logits[mask > 0], expected[mask > 0], atol=1e-4)
        logits_BV, cache = extend(variables, decoder.empty(BATCH, 16), TOKENS, mask > 0)
        last_B = LENGTH - 1 - mask[:, ::-1].argmax(1)
        np.testing.assert_allclose(logits_BV, expected[np.arange(BATCH), last_B], atol=1e-4)
        rows = [[*TOKENS[row][mask[row] > 0], 1 + row] for row in range(BATCH)]
        new = np.array([row[-1:] for row in rows])
        logits_BV, cache = extend(variables, cache, new, np.ones((BATCH, 1), bool))
        for row, logits_V in zip(rows, logits_BV, strict=True):
            with torch.no_grad():
                expected_V = theirs(torch.tensor([row])).logits[0, -1].numpy()
            np.testing.assert_allclose(logits_V, expected_V, atol=1e-4)


@pytest.mark.parametrize("is_first_version", [True, False])
def test_t5_reads_padded_sources_as_transformers_does(transformers, torch, tmp_path, is_first_version):
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_ff=24,
        num_layers=2,
        num_heads=4,
        d_kv=6,
        relative_attention_num_buckets=6,
        relative_attention_max_distance=5,
        feed_forward_proj="relu" if is_first_version else "gated-gelu",
        tie_word_embeddings=is_first_version,
    )
    theirs = randomized(transformers.T5ForConditionalGeneration(config))
    if not is_first_version:
        # Without this the head shares the memory of the embeddings and is not saved.
        theirs.lm_head.weight = type(theirs.lm_head.weight)(theirs.lm_head.weight.flip(0).contiguous())
    theirs.save_pretrained(tmp_path)
    model, variables = load_model(tmp_path)
    target = TOKENS[:, 3:10]
    decoder = as_model(model).decoder
    for mask in (PADDED_AFTER, PADDED_BEFORE):
        with torch.no_grad():
            inputs = {"input_ids": TOKENS, "attention_mask": mask, "decoder_input_ids": target}
            expected = theirs(**{name: torch.tensor(x) for name, x in inputs.items()}).logits.numpy()
        assert expected.std((0, 1)).mean() > 0.1
        logits = quick_jit(model.apply)(variables, TOKENS, mask, target)
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        cache = quick_jit(decoder.encode)(variables, decoder.empty(BATCH, 8), TOKENS, mask > 0)
        for first, last in ((0, 5), (5, 6), (6, 7)):
            new = target[:, first:last]
            logits_BV, cache = quick_jit(decoder.extend)(variables, cache, new, new > 0)
            np.testing.assert_allclose(logits_BV, expected[:, last - 1], atol=1e-4)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_buckets_of_distances_are_those_of_t5(transformers, torch, is_causal, num_buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(
        torch.tensor(distances), not is_causal, num_buckets, max_distance
    )
    bias = RelativeBias(1, num_buckets, max_distance, is_causal)
    variables = {"params": {"embedding": jnp.arange(float(num_buckets))[:, None]}}
    found = jax.jit(bias.apply)(variables, jnp.zeros((1, 1), int), distances[None])
    np.testing.assert_array_equal(found[0, 0, 0], expected)


def test_stretched_frequencies_are_those_of_llama_3_1(transformers):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "original_max_position_embeddings": 8192}
    rope |= STRETCH | {"factor": 8.0}
    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "max_position_embeddings": 131_072}
    config = transformers.LlamaConfig(**sizes, rope_parameters=rope)
    expected, scale = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert scale == 1
    found = Rotary(5e5, (8.0, 1.0, 4.0, 8192)).frequencies(128)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found < 0.9 * Rotary(5e5).frequencies(128)).sum() > 10


def weights_of_torch(module, num_layers, is_norm_first):
    """Returns the parameters of `Transformer` from a `torch.nn.Transformer`, without embeddings."""
    weights = {name: value.detach().numpy() for name, value in module.state_dict().items()}

    def dense(weight, bias):
        return {"kernel": weight.T, "bias": bias}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def attention(name):
        pairs = zip(
            ("query", "key", "value"),
            np.split(weights[f"{name}.in_proj_weight"], 3),
            np.split(weights[f"{name}.in_proj_bias"], 3),
            strict=True,
        )
        out = dense(weights[f"{name}.out_proj.weight"], weights[f"{name}.out_proj.bias"])
        return {layer: dense(weight, bias) for layer, weight, bias in pairs} | {"out": out}

    def layer(name, has_memory):
        found = {
            "attention": attention(f"{name}.self_attn"),
            "attention_norm": norm(f"{name}.norm1"),
            "feed_forward": {
                ours: dense(weights[f"{name}.{theirs}.weight"], weights[f"{name}.{theirs}.bias"])
                for ours, theirs in (("in", "linear1"), ("out", "linear2"))
            },
            "feed_forward_norm": norm(f"{name}.norm3" if has_memory else f"{name}.norm2"),
        }
        if has_memory:
            found["cross_attention"] = attention(f"{name}.multihead_attn")
            found["cross_norm"] = norm(f"{name}.norm2")
        return found

    params = {}
    for side in ("encoder", "decoder"):
        params[f"{side}_layers"] = {
            f"layer{index}": layer(f"{side}.layers.{index}", side == "decoder") for index in range(num_layers)
        }
        if is_norm_first:
            params[f"{side}_norm"] = norm(f"{side}.norm")
    return params


@pytest.mark.parametrize("is_norm_first", [False, True])
def test_the_transformer_equals_that_of_pytorch(torch, is_norm_first):
    dim, num_layers, source, target = 16, 2, TOKENS, TOKENS[:, 2:9]
    sizes = {"d_model": dim, "nhead": 4, "dim_feedforward": 24, "layer_norm_eps": 1e-6}
    theirs = torch.nn.Transformer(
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
        batch_first=True,
        norm_first=is_norm_first,
        dropout=0.0,
        **sizes,
    )
    if not is_norm_first:
        # The paper has no norm after the last layer when there is one after every sum.
        theirs.encoder.norm = theirs.decoder.norm = None
    randomized(theirs)
    model = Transformer(VOCAB, dim, num_layers, 4, 24, is_norm_first=is_norm_first)
    embedding = np.random.default_rng(1).normal(size=(VOCAB, dim)).astype(np.float32) / 4
    params = weights_of_torch(theirs, num_layers, is_norm_first) | {
        "token_embedding": {"embedding": embedding}
    }

    def embed(tokens):
        pair, position = np.arange(dim) // 2, np.arange(tokens.shape[1])[:, None]
        angle = position / 10_000 ** (2 * pair / dim)
        positions = np.where(np.arange(dim) % 2, np.cos(angle), np.sin(angle))
        return torch.tensor(embedding[tokens] * dim**0.5 + positions, dtype=torch.float32)

    is_padding = torch.tensor(PADDED_AFTER == 0)
    with torch.no_grad():
        outputs = theirs(
            embed(source),
            embed(target),
            tgt_mask=torch.nn.Transformer.generate_square_subsequent_mask(target.shape[1]) < 0,
            src_key_padding_mask=is_padding,
            memory_key_padding_mask=is_padding,
        )
    expected = outputs.numpy() @ embedding.T
    assert expected.std((0, 1)).mean() > 0.1
    logits = quick_jit(model.apply)({"params": params}, source, PADDED_AFTER, target)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)
