"""The weights of T5, T5 1.1 and Flan-T5, as `T5ForConditionalGeneration` of Hugging Face stores them."""

from typing import Any

import numpy as np

from dl.models.t5 import T5
from dl.models.weights.family import Config, Family, Tensor, dense, norm

_EMBEDDINGS = "shared.weight"


def _model_of(config: Config) -> T5:
    config.require("feed_forward_proj", "relu", "gated-gelu")
    config.require("num_decoder_layers", config.size("num_layers"), None)
    # transformers 5 writes tie_word_embeddings=true for every T5 and tells version 1.1 by the other name.
    is_tied = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    return T5(
        vocab_size=config.size("vocab_size"),
        dim=config.size("d_model"),
        num_layers=config.size("num_layers"),
        num_heads=config.size("num_heads"),
        head_dim=config.size("d_kv"),
        hidden_dim=config.size("d_ff"),
        is_gated=config.get("feed_forward_proj", "relu") == "gated-gelu",
        is_tied=is_tied,
        num_buckets=config.get("relative_attention_num_buckets", 32),
        max_distance=config.get("relative_attention_max_distance", 128),
        dropout=float(config.get("dropout_rate", 0.1)),
        epsilon=config.get("layer_norm_epsilon", 1e-6),
    )


def _config_of(model: T5) -> dict[str, Any]:
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": model.vocab_size,
        "d_model": model.dim,
        "num_layers": model.num_layers,
        "num_decoder_layers": model.num_layers,
        "num_heads": model.num_heads,
        "d_kv": model.head_dim or model.dim // model.num_heads,
        "d_ff": model.hidden_dim or 4 * model.dim,
        "feed_forward_proj": "gated-gelu" if model.is_gated else "relu",
        "tie_word_embeddings": model.is_tied,
        "scale_decoder_outputs": model.is_tied,
        "relative_attention_num_buckets": model.num_buckets,
        "relative_attention_max_distance": model.max_distance,
        "dropout_rate": model.dropout,
        "layer_norm_epsilon": model.epsilon,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "eos_token_id": None,
    }


def _attention(name: str, path: str) -> list[Tensor]:
    modules = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out"))
    return [
        row for theirs, ours in modules for row in dense(f"{name}.{theirs}", f"{path}/{ours}", use_bias=False)
    ]


def _tensors(model: T5) -> list[Tensor]:
    rows = [Tensor(_EMBEDDINGS, ("token_embedding/embedding",))]
    for part in ("encoder", "decoder"):
        bias = f"{part}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rows.append(Tensor(bias, (f"{part}_bias/embedding",)))
        for number in range(model.num_layers):
            name, path = f"{part}.block.{number}.layer", f"{part}_layers/layer{number}"
            rows += norm(f"{name}.0.layer_norm", f"{path}/attention_norm", use_bias=False)
            rows += _attention(f"{name}.0.SelfAttention", f"{path}/attention")
            last = 1
            if part == "decoder":
                rows += norm(f"{name}.1.layer_norm", f"{path}/cross_norm", use_bias=False)
                rows += _attention(f"{name}.1.EncDecAttention", f"{path}/cross_attention")
                last = 2
            rows += norm(f"{name}.{last}.layer_norm", f"{path}/feed_forward_norm", use_bias=False)
            inner = [("wi_0", "gate"), ("wi_1", "in")] if model.is_gated else [("wi", "in")]
            for theirs, ours in [*inner, ("wo", "out")]:
                feed_forward = f"{name}.{last}.DenseReluDense.{theirs}"
                rows += dense(feed_forward, f"{path}/feed_forward/{ours}", use_bias=False)
        rows += norm(f"{part}.final_layer_norm", f"{part}_norm", use_bias=False)
    return rows if model.is_tied else rows + dense("lm_head", "head", use_bias=False)


def _copies(model: T5) -> dict[str, str]:
    names = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    return dict.fromkeys([*names, "lm_head.weight"] if model.is_tied else names, _EMBEDDINGS)


_TOKENS = np.zeros((1, 1), np.int32)

FAMILY = Family(
    model_types=("t5",),
    prefix="",
    model_of=_model_of,
    config_of=_config_of,
    tensors=_tensors,
    copies=_copies,
    ignored=r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias",  # never used
    inputs=(_TOKENS, None, _TOKENS),
)
