"""Language models equal those of `transformers`, in both directions: their files in, our files out.

pip install -e '.[dev,peers]'; nothing is downloaded.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.methods.lora import LoRA, merge, with_lora
from dl.models.weights.hugging_face import load_model, pretrained_model, save_model
from dl.training.loop import train

# Their warnings are not ours.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

TOKENS_BT = np.random.default_rng(0).integers(0, 23, (2, 7))


@pytest.fixture(scope="module")
def transformers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("torch", reason="needs the extra 'peers'")
        yield pytest.importorskip("transformers", reason="needs the extra 'peers'")


def randomized(model):
    """Returns a model with random weights, none of them a default, and logits that depend on the tokens."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor.normal_(0.5, 0.3, generator=generator)
            else:
                tensor.normal_(0, 1.5 * tensor.shape[-1] ** -0.5, generator=generator)
    return model.eval()


LLAMA = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": None,
}
STRETCH = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def decoder_of(transformers, name):
    if name == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=23,
                n_positions=9,
                n_embd=16,
                n_layer=2,
                n_head=4,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    if name == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, rope_parameters=STRETCH))
    if name == "mistral":
        config = transformers.MistralConfig(**LLAMA, sliding_window=None, head_dim=6)
        return transformers.MistralForCausalLM(config)
    config = transformers.Qwen3Config(**LLAMA, head_dim=6, tie_word_embeddings=True)
    return transformers.Qwen3ForCausalLM(config)


def their_logits(model, **inputs):
    import torch

    with torch.no_grad():
        return model(**{name: torch.tensor(x) for name, x in inputs.items()}).logits.numpy()


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen3"])
def test_decoders(transformers, tmp_path, name):
    theirs = randomized(decoder_of(transformers, name))
    theirs.save_pretrained(tmp_path / "theirs")
    expected = their_logits(theirs, input_ids=TOKENS_BT)
    assert expected.std((0, 1)).mean() > 0.1  # logits that no token moves would prove nothing
    model, variables = load_model(tmp_path / "theirs")
    logits = jax.jit(model.apply)(variables, jnp.asarray(TOKENS_BT))
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)

    changed = jax.tree.map(lambda leaf: leaf * 1.01, variables)
    save_model(tmp_path / "ours", model, changed)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_allclose(
        jax.jit(model.apply)(changed, jnp.asarray(TOKENS_BT)),
        their_logits(again, input_ids=TOKENS_BT),
        atol=1e-4,
        rtol=0,
    )


BERT = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 9,
    "num_labels": 3,
}
LENGTHS_B1 = np.array([[7], [4]])
MASK_BT = np.int32(np.arange(7) < LENGTHS_B1)


@pytest.mark.parametrize(
    "kind", ["ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification", "Model"]
)
def test_bert(transformers, tmp_path, kind):
    theirs = randomized(getattr(transformers, f"Bert{kind}")(transformers.BertConfig(**BERT)))
    theirs.save_pretrained(tmp_path / "theirs")

    def expected(model):
        import torch

        with torch.no_grad():
            outputs = model(torch.tensor(TOKENS_BT), torch.tensor(MASK_BT))
        name = {"Model": "pooler_output", "ForPreTraining": "prediction_logits"}.get(kind, "logits")
        outputs = outputs[name].numpy()
        return outputs if outputs.ndim == 2 else outputs * MASK_BT[..., None]

    def computed(model, variables):
        outputs = jax.jit(model.apply)(variables, jnp.asarray(TOKENS_BT), jnp.asarray(MASK_BT))
        return outputs if outputs.ndim == 2 else outputs * MASK_BT[..., None]

    assert expected(theirs).std(0).mean() > 0.01
    model, variables = load_model(tmp_path / "theirs")
    np.testing.assert_allclose(computed(model, variables), expected(theirs), atol=1e-4, rtol=0)
    changed = jax.tree.map(lambda leaf: leaf * 1.01, variables)
    save_model(tmp_path / "ours", model, changed, like=tmp_path / "theirs")
    if kind == "ForPreTraining":
        return  # without the head for next sentences it is written as BertForMaskedLM
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_allclose(computed(model, changed), expected(again), atol=1e-4, rtol=0)


@pytest.mark.parametrize("is_first_version", [True, False])
def test_t5(transformers, tmp_path, is_first_version):
    config = transformers.T5Config(
        vocab_size=23,
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
        theirs.lm_head.weight = type(theirs.lm_head.weight)(theirs.lm_head.weight.flip(0).contiguous())
    theirs.save_pretrained(tmp_path / "theirs")
    inputs = {"input_ids": TOKENS_BT, "attention_mask": MASK_BT, "decoder_input_ids": TOKENS_BT[:, :5]}
    expected = their_logits(theirs, **inputs)
    assert expected.std((0, 1)).mean() > 0.1
    model, variables = load_model(tmp_path / "theirs")
    assert model.is_tied == is_first_version
    arguments = (jnp.asarray(TOKENS_BT), jnp.asarray(MASK_BT), jnp.asarray(TOKENS_BT[:, :5]))
    logits = jax.jit(model.apply)(variables, *arguments)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    changed = jax.tree.map(lambda leaf: leaf * 1.01, variables)
    save_model(tmp_path / "ours", model, changed)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours").eval()
    logits = jax.jit(model.apply)(changed, *arguments)
    np.testing.assert_allclose(logits, their_logits(again, **inputs), atol=1e-4, rtol=0)


def test_shards_and_bases_in_bfloat16(transformers, tmp_path):
    import torch

    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True)
    theirs = randomized(transformers.LlamaForCausalLM(config)).to(torch.bfloat16)
    theirs.model.save_pretrained(tmp_path / "base", max_shard_size="4KB")  # without prefix and head
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    model, variables = load_model(tmp_path / "base")
    assert model.dtype == jnp.bfloat16
    save_model(tmp_path / "ours", model, variables, max_shard_bytes=3000, like=tmp_path / "base")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == torch.bfloat16
    for (name, ours), (_, tensor) in zip(
        again.state_dict().items(), theirs.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, tensor), name


def test_a_model_is_fine_tuned_by_adapters_and_given_back(transformers, tmp_path, mesh1):
    theirs = randomized(decoder_of(transformers, "gpt2"))
    theirs.save_pretrained(tmp_path / "theirs")
    model, _ = load_model(tmp_path / "theirs", dropout=0.0)
    adapters = LoRA(patterns=("query", "value"), rank=2)
    source = ArraySource({"tokens": np.int32(TOKENS_BT)})
    result = train(
        Experiment(
            data=ArraySplits("two", train=source, evaluations={"validation": source, "test": source}),
            task=with_lora(task.language_model(model), adapters),
            tx=optimizers.adam(1e-2),
            frozen=adapters.frozen,
            warm_start=pretrained_model(tmp_path / "theirs"),
            num_steps=5,
            batch_size=2,
            eval_batch_size=2,
            eval_at_start=True,
            eval_every=5,
        ),
        mesh=mesh1,
    )
    evaluations = [row for row in result.history if row["kind"] != "train"]
    first = jax.nn.log_softmax(their_logits(theirs, input_ids=TOKENS_BT))[:, :-1]
    expected = float(-np.take_along_axis(np.asarray(first), TOKENS_BT[:, 1:, None], -1).mean())
    assert evaluations[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert evaluations[-1]["loss"] < expected - 0.01
    merged = {"params": merge(result.params, adapters)}
    save_model(tmp_path / "ours", model, merged, like=tmp_path / "theirs")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    logits = their_logits(again, input_ids=TOKENS_BT)
    np.testing.assert_allclose(jax.jit(model.apply)(merged, TOKENS_BT), logits, atol=1e-4, rtol=0)
    assert np.abs(logits - their_logits(theirs, input_ids=TOKENS_BT)).max() > 0.01
