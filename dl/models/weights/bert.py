"""The weights of BERT, as Hugging Face stores them: the encoder, and the heads for tokens and for classes."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from dl.errors import UserError
from dl.models.bert import BERT, BERTForMaskedLM
from dl.models.transfer import WithHead
from dl.models.weights.family import Config, Family, Tensor, dense, norm

_FIXED = {"is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True}
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


def _model_of(config: Config) -> nn.Module:
    config.require("hidden_act", "gelu")
    config.require("position_embedding_type", "absolute", None)
    for name, value in _FIXED.items():
        config.require(name, value)
    encoder = BERT(
        vocab_size=config.size("vocab_size"),
        max_length=config.size("max_position_embeddings"),
        dim=config.size("hidden_size"),
        num_layers=config.size("num_hidden_layers"),
        num_heads=config.size("num_attention_heads"),
        hidden_dim=config.size("intermediate_size"),
        num_token_types=config.size("type_vocab_size"),
        dropout=config.shared(*_DROPOUTS, default=0.1),
        epsilon=config.get("layer_norm_eps", 1e-12),
    )
    architecture = next(iter(config.get("architectures", [])), "BertModel")
    if architecture in ("BertForMaskedLM", "BertForPreTraining"):
        return BERTForMaskedLM(encoder)
    if architecture == "BertModel":
        return encoder.clone(pooling="first")
    if architecture in ("BertForSequenceClassification", "BertForTokenClassification"):
        pooling = "first" if architecture == "BertForSequenceClassification" else None
        dropout = config.get("classifier_dropout", encoder.dropout)
        num_classes = len(config.get("id2label", (0, 1)))
        return WithHead(encoder.clone(pooling=pooling), num_classes, dropout=float(dropout))
    raise UserError(
        f"{config.source}: config.json has architectures={[architecture]}, which dl does not compute; it "
        "must be BertModel, or BertFor… MaskedLM, PreTraining, SequenceClassification or TokenClassification"
    )


def _base_of(model: Any) -> Any:
    if isinstance(model, BERTForMaskedLM):
        return model.encoder
    return model.backbone if isinstance(model, WithHead) else model


def _with_base(model: Any, encoder: BERT) -> nn.Module:
    if isinstance(model, BERTForMaskedLM):
        return BERTForMaskedLM(encoder)
    return model.clone(backbone=encoder, dtype=encoder.dtype) if isinstance(model, WithHead) else encoder


def _of_shapes(model: Any, shapes: Mapping[str, Any]) -> nn.Module:
    """Returns the module of the same encoder whose parameters have these names."""
    encoder = _base_of(model)
    if "encoder" in shapes:
        return BERTForMaskedLM(encoder.clone(pooling=None))
    inner = shapes.get("backbone", shapes)
    encoder = encoder.clone(pooling="first" if "pooler" in inner else None)
    return WithHead(encoder, 1) if "backbone" in shapes else encoder


def _config_of(model: Any) -> dict[str, Any]:
    encoder = _base_of(model)
    hidden = model.hidden if isinstance(model, WithHead) else ()
    if encoder.pooling == "mean" or hidden:
        raise UserError(
            f"the layout of Hugging Face has no BERT with pooling={encoder.pooling!r} and hidden={hidden}; "
            "use pooling='first' or None, and hidden=()"
        )
    kind, more = "BertModel", {}  # type: tuple[str, dict[str, Any]]
    if isinstance(model, BERTForMaskedLM):
        kind = "BertForMaskedLM"
    elif isinstance(model, WithHead):
        kind = f"BertFor{'Sequence' if encoder.pooling else 'Token'}Classification"
        labels = {str(label): f"LABEL_{label}" for label in range(model.num_classes)}
        more = {"id2label": labels, "classifier_dropout": model.dropout}
    return {
        "model_type": "bert",
        "architectures": [kind],
        "hidden_act": "gelu",
        **_FIXED,
        "vocab_size": encoder.vocab_size,
        "max_position_embeddings": encoder.max_length,
        "hidden_size": encoder.dim,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": encoder.hidden_dim or 4 * encoder.dim,
        "type_vocab_size": encoder.num_token_types,
        **dict.fromkeys(_DROPOUTS, encoder.dropout),
        "layer_norm_eps": encoder.epsilon,
        **more,
    }


def _tensors(model: Any) -> list[Tensor]:
    encoder = _base_of(model)
    if encoder.rotary is not None or encoder.is_norm_first:
        raise UserError(
            "the layout of Hugging Face's BERT has learned positions and norms after the sums; this one has "
            f"rotary={encoder.rotary} and is_norm_first={encoder.is_norm_first}, so it cannot be written"
        )
    at = {BERTForMaskedLM: "encoder/", WithHead: "backbone/"}.get(type(model), "")
    rows = [
        Tensor(f"bert.embeddings.{theirs}_embeddings.weight", (f"{at}{ours}_embedding/embedding",))
        for theirs, ours in (("word", "token"), ("position", "position"), ("token_type", "type"))
    ]
    rows += norm("bert.embeddings.LayerNorm", f"{at}embedding_norm")
    for number in range(encoder.num_layers):
        name, path = f"bert.encoder.layer.{number}", f"{at}layers/layer{number}"
        for part in ("query", "key", "value"):
            rows += dense(f"{name}.attention.self.{part}", f"{path}/attention/{part}")
        rows += dense(f"{name}.attention.output.dense", f"{path}/attention/out")
        rows += norm(f"{name}.attention.output.LayerNorm", f"{path}/attention_norm")
        rows += dense(f"{name}.intermediate.dense", f"{path}/feed_forward/in")
        rows += dense(f"{name}.output.dense", f"{path}/feed_forward/out")
        rows += norm(f"{name}.output.LayerNorm", f"{path}/feed_forward_norm")
    if encoder.pooling == "first":
        rows += dense("bert.pooler.dense", f"{at}pooler")
    if isinstance(model, BERTForMaskedLM):
        rows += dense("cls.predictions.transform.dense", "transform")
        rows += norm("cls.predictions.transform.LayerNorm", "norm")
        rows.append(Tensor("cls.predictions.bias", ("bias",)))
    elif isinstance(model, WithHead):
        rows += dense("classifier", "head")
    return rows


def _copies(model: Any) -> dict[str, str]:
    if not isinstance(model, BERTForMaskedLM):
        return {}
    decoder = "cls.predictions.decoder"
    return {f"{decoder}.weight": _EMBEDDINGS, f"{decoder}.bias": "cls.predictions.bias"}


FAMILY = Family(
    model_types=("bert",),
    prefix="bert.",
    model_of=_model_of,
    config_of=_config_of,
    tensors=_tensors,
    copies=_copies,
    # Heads that the module does not have, and constants.
    ignored=r"^(cls|pooler|classifier)\.|^embeddings\.position_ids$",
    spellings={".gamma": ".weight", ".beta": ".bias"},
    base_of=_base_of,
    with_base=_with_base,
    of_shapes=_of_shapes,
)
