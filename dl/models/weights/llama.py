"""The weights of Llama 2 and 3, Mistral and Qwen 3, as Hugging Face stores them."""

from typing import Any

from dl.errors import UserError
from dl.models.blocks.positions import Rotary
from dl.models.llama import Llama
from dl.models.weights.family import Config, Family, Tensor, dense, norm

_STRETCH = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _rotary(config: Config) -> Rotary:
    # Older files have `rope_theta` and `rope_scaling`, newer ones `rope_parameters` for both.
    stated = config.get("rope_parameters", None) or config.get("rope_scaling", {})
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(
            f"{config.source}: config.json has rope_type={kind!r}, which dl does not compute; it must be "
            "'default' or 'llama3': use another model"
        )
    base = float(stated.get("rope_theta", config.get("rope_theta", 10_000.0)))
    if kind == "default":
        return Rotary(base)
    if missing := [name for name in _STRETCH if name not in stated]:
        raise UserError(f"{config.source}: config.json has rope_type='llama3' without {missing[0]}; add it")
    factor, low, high, context = (stated[name] for name in _STRETCH)
    return Rotary(base, (float(factor), float(low), float(high), int(context)))


def _model_of(config: Config) -> Llama:
    model_type = config.values["model_type"]
    config.require("hidden_act", "silu")
    config.require("attention_bias", False)
    config.require("mlp_bias", False)
    config.require("attention_dropout", 0.0, 0)
    if model_type == "mistral" or config.get("use_sliding_window", False):
        config.require("sliding_window", None)
    if others := set(config.get("layer_types", [])) - {"full_attention"}:
        raise UserError(
            f"{config.source}: config.json has {sorted(others)[0]!r} in layer_types, which dl does not "
            "compute; it must be 'full_attention': use another model"
        )
    return Llama(
        vocab_size=config.size("vocab_size"),
        dim=config.size("hidden_size"),
        num_layers=config.size("num_hidden_layers"),
        num_heads=config.size("num_attention_heads"),
        hidden_dim=config.size("intermediate_size"),
        num_kv_heads=config.get("num_key_value_heads", None),
        head_dim=config.get("head_dim", 128 if model_type == "qwen3" else None),
        has_qk_norm=model_type == "qwen3",
        rotary=_rotary(config),
        is_tied=config.get("tie_word_embeddings", False),
        epsilon=config.get("rms_norm_eps", 1e-6),
        init_scale=config.get("initializer_range", 0.02),
    )


def _config_of(model: Llama) -> dict[str, Any]:
    stretch = model.rotary.stretch
    # The config of Qwen 3 has a default of its own.
    head_dim = model.head_dim or (model.dim // model.num_heads if model.has_qk_norm else None)
    scaling = None
    if stretch is not None:
        scaling = {"rope_type": "llama3", **dict(zip(_STRETCH, stretch, strict=True))}
    return {
        "model_type": "qwen3" if model.has_qk_norm else "llama",
        "architectures": ["Qwen3ForCausalLM" if model.has_qk_norm else "LlamaForCausalLM"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.hidden_width,
        "num_key_value_heads": model.num_kv_heads or model.num_heads,
        **({} if head_dim is None else {"head_dim": head_dim}),
        "rope_theta": model.rotary.base,
        "rope_scaling": scaling,
        "max_position_embeddings": 2048 if stretch is None else int(stretch[0] * stretch[3]),
        "tie_word_embeddings": model.is_tied,
        "rms_norm_eps": model.epsilon,
        "initializer_range": model.init_scale,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _tensors(model: Llama) -> list[Tensor]:
    rows = [Tensor("model.embed_tokens.weight", ("token_embedding/embedding",))]
    for number in range(model.num_layers):
        name, path = f"model.layers.{number}", f"layers/layer{number}"
        rows += norm(f"{name}.input_layernorm", f"{path}/attention_norm", use_bias=False)
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
            rows += dense(f"{name}.self_attn.{theirs}_proj", f"{path}/attention/{ours}", use_bias=False)
        if model.has_qk_norm:
            for theirs, ours in (("q", "query"), ("k", "key")):
                rows += norm(
                    f"{name}.self_attn.{theirs}_norm", f"{path}/attention/{ours}_norm", use_bias=False
                )
        rows += norm(f"{name}.post_attention_layernorm", f"{path}/feed_forward_norm", use_bias=False)
        for theirs, ours in (("gate", "gate"), ("up", "in"), ("down", "out")):
            rows += dense(f"{name}.mlp.{theirs}_proj", f"{path}/feed_forward/{ours}", use_bias=False)
    rows += norm("model.norm", "final_norm", use_bias=False)
    return rows if model.is_tied else rows + dense("lm_head", "head", use_bias=False)


FAMILY = Family(
    model_types=("llama", "mistral", "qwen3"),
    prefix="model.",
    model_of=_model_of,
    config_of=_config_of,
    tensors=_tensors,
    copies=lambda model: {"lm_head.weight": "model.embed_tokens.weight"} if model.is_tied else {},
    ignored=r"\.rotary_emb\.inv_freq$",
    kept=r".*_token_id|max_position_embeddings",
)
