"""The weights of GPT-2, as `GPT2LMHeadModel` and `GPT2Model` of Hugging Face store them."""

from typing import Any

from dl.models.gpt2 import GPT2
from dl.models.weights.family import FUSED, SAME, Config, Family, Tensor, norm

_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def _model_of(config: Config) -> GPT2:
    config.require("activation_function", "gelu_new", "gelu_pytorch_tanh")
    for name, value in _FIXED.items():
        config.require(name, value)
    return GPT2(
        vocab_size=config.size("vocab_size"),
        max_length=config.size("n_positions"),
        dim=config.size("n_embd"),
        num_layers=config.size("n_layer"),
        num_heads=config.size("n_head"),
        hidden_dim=config.get("n_inner", None),
        dropout=config.shared(*_DROPOUTS, default=0.1),
        epsilon=config.get("layer_norm_epsilon", 1e-5),
    )


def _config_of(model: GPT2) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        **_FIXED,
        "vocab_size": model.vocab_size,
        "n_positions": model.max_length,
        "n_embd": model.dim,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.hidden_dim,
        **dict.fromkeys(_DROPOUTS, model.dropout),
        "layer_norm_epsilon": model.epsilon,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _conv1d(name: str, path: str, modules: tuple[str, ...]) -> list[Tensor]:
    """Returns the rows of a `Conv1D`: a dense layer whose weight is not transposed."""
    layout = SAME if len(modules) == 1 else FUSED
    return [
        Tensor(f"{name}.{theirs}", tuple(f"{path}/{module}/{ours}" for module in modules), layout)
        for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
    ]


def _tensors(model: GPT2) -> list[Tensor]:
    rows = [
        Tensor("transformer.wte.weight", ("token_embedding/embedding",)),
        Tensor("transformer.wpe.weight", ("position_embedding/embedding",)),
    ]
    for number in range(model.num_layers):
        name, path = f"transformer.h.{number}", f"layers/layer{number}"
        rows += norm(f"{name}.ln_1", f"{path}/attention_norm")
        rows += _conv1d(f"{name}.attn.c_attn", f"{path}/attention", ("query", "key", "value"))
        rows += _conv1d(f"{name}.attn.c_proj", f"{path}/attention", ("out",))
        rows += norm(f"{name}.ln_2", f"{path}/feed_forward_norm")
        rows += _conv1d(f"{name}.mlp.c_fc", f"{path}/feed_forward", ("in",))
        rows += _conv1d(f"{name}.mlp.c_proj", f"{path}/feed_forward", ("out",))
    return rows + norm("transformer.ln_f", "final_norm")


FAMILY = Family(
    model_types=("gpt2",),
    prefix="transformer.",
    model_of=_model_of,
    config_of=_config_of,
    tensors=_tensors,
    copies=lambda _: {"lm_head.weight": "transformer.wte.weight"},
    ignored=r"^h\.\d+\.attn\.(bias|masked_bias)$",  # the causal mask
)
