"""Language models as folders in the layout of Hugging Face: config.json, safetensors, files of the tokenizer.

`load_model` reads such a folder, `save_model` writes one that `transformers` reads, and `pretrained_model`
starts an experiment from one. This module needs the extra `weights`: pip install 'dl[weights]'.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dl.errors import UserError
from dl.models.bert import BERT, BERTForMaskedLM
from dl.models.blocks.scan import is_stacked
from dl.models.gpt2 import GPT2
from dl.models.llama import Llama
from dl.models.t5 import T5
from dl.models.transfer import WithHead
from dl.models.weights import bert, gpt2, llama, t5
from dl.models.weights.family import Config, Family
from dl.models.weights.files import fit_to, local_copy
from dl.models.weights.folder import read_family, stack_found, tensors_of, write_shards
from dl.system.files import replace_text, storage_error
from dl.system.json_files import read_json
from dl.types import Variables
from dl.warm_start import WarmStart, without_adapters

_FAMILIES: Mapping[type[nn.Module], Family] = {
    GPT2: gpt2.FAMILY,
    Llama: llama.FAMILY,
    BERT: bert.FAMILY,
    BERTForMaskedLM: bert.FAMILY,
    WithHead: bert.FAMILY,
    T5: t5.FAMILY,
}
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "chat_template.jinja"),
)
_KEPT_FILES = (*_TOKENIZER_FILES, "generation_config.json")


def load_model(
    source: str | Path, *, dtype: Any = None, revision: str | None = None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Returns the Linen module that a config.json describes, and its variables.

    It reads GPT-2; Llama 2 and 3, Mistral and Qwen 3 (`Llama`); T5, T5 1.1 and Flan-T5; and BERT, also with
    heads for masked tokens and for classes of texts or tokens (`transfer.WithHead`). For example, this
    computes the logits of GPT-2::

        model, variables = load_model("openai-community/gpt2")
        logits_BTV = model.apply(variables, tokens_BT)

    `published` of `dl.data.text.tokenizers_subword` reads the tokenizer of a folder.

    Args:
      source: a folder, or the name of a model on the Hugging Face hub.
      dtype: dtype of the parameters and of the computation. `None` means that of the file.
      revision: commit on the hub, so that the weights cannot change later. `None` means the newest commit.
      options: attributes of the module that do not change what its weights mean, such as `is_scanned`,
        `dropout` and `implementation`.

    Raises:
      UserError: the source cannot be read, its config.json asks for something that the module does not
        compute, or a tensor is missing, unexpected or has another shape.
    """
    folder = local_copy(source, revision, ["config.json", *_KEPT_FILES])
    family, model = _described(folder, options)
    base = family.base_of(model)
    found = read_family(folder, family, model)
    if base.is_scanned:
        found = stack_found(found)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *family.inputs)
    loaded = fit_to(str(source), found, flatten_dict(shapes))
    if dtype is not None:
        loaded = {path: array.astype(dtype) for path, array in loaded.items()}
    dtypes = {array.dtype for array in loaded.values()}
    if base.dtype is None and len(dtypes) == 1 and dtypes != {np.dtype(np.float32)}:
        model = family.with_base(model, base.clone(dtype=dtypes.pop()))
    return model, jax.tree.map(jnp.asarray, unflatten_dict(loaded))


def described_model(source: str | Path, *, revision: str | None = None, **options: Any) -> Any:
    """Returns the Linen module that a config.json describes; the weights are not read.

    Args:
      source: a folder, or the name of a model on the Hugging Face hub.
      revision: commit on the hub. `None` means the newest commit.
      options: attributes of the module, as for `load_model`.

    Raises:
      UserError: as `load_model`.
    """
    return _described(local_copy(source, revision, ["config.json"]), options)[1]


def save_model(
    folder: str | Path,
    model: nn.Module,
    variables: Variables,
    *,
    like: str | Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a module and its variables as a folder that `transformers` and `load_model` read.

    The folder gets config.json and model.safetensors, or several files and their index. The parameters are
    written in their dtypes, bit for bit. A Mistral model is written as a Llama model, which is the same
    network.

    Args:
      folder: folder that is created. It must not hold a model yet.
      model: a module that `load_model` can return.
      variables: its variables.
      like: folder or name that the model came from. Its tokenizer, its generation_config.json, and the ids of
        special tokens and names of labels in its config.json are kept.
      max_shard_bytes: largest number of bytes of a file, unless one tensor alone is larger.

    Raises:
      UserError: the family of the model is not known, parameters are missing or unexpected, or the folder
        cannot be written.
    """
    family = _FAMILIES.get(type(model))
    if family is None or type(family.base_of(model)) not in _FAMILIES:
        known = ", ".join(kind.__name__ for kind in _FAMILIES)
        raise UserError(f"save_model cannot write a {type(model).__name__}; it writes {known}")
    folder = Path(folder)
    held = [*folder.glob("*.safetensors*"), *folder.glob("config.json")]
    if held:
        raise UserError(f"{folder} holds a model already ({held[0].name}); choose another folder")
    if "params" not in variables:
        raise UserError(f"the variables hold {', '.join(variables)} and no params; give {{'params': …}}")
    tensors = tensors_of(family, model, variables["params"])
    dtypes = {str(array.dtype) for array in tensors.values()}
    config = family.config_of(model) | {"torch_dtype": dtypes.pop() if len(dtypes) == 1 else "float32"}
    kept: list[Path] = []
    if like is not None:
        source = local_copy(like, None, ["config.json", *_KEPT_FILES])
        values = _config(source).values
        num_labels = len(config.get("id2label", values.get("id2label", ())))
        for name in values:
            is_label = name in ("id2label", "label2id")
            if re.fullmatch(family.kept, name) and (not is_label or len(values[name]) == num_labels):
                config[name] = values[name]
        kept = [source / name for name in _KEPT_FILES if (source / name).is_file()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_shards(folder, tensors, max_shard_bytes)
        for file in kept:
            shutil.copyfile(file, folder / file.name)
        replace_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise storage_error(folder, error) from error


def pretrained_model(
    source: str | Path, *, skip: Sequence[str] = (), under: str | None = None, revision: str | None = None
) -> WarmStart:
    """Returns a warm start of a model, or of its submodule, with the weights of a folder or of the hub.

    Make the model by `described_model`: only the shapes of parameters are compared, and they do not tell the
    number of heads, the rotary positions or the epsilon of norms.

    The parameters get the dtypes of the model. The layers of the model may be scanned. Adapters of
    `methods.lora` are initialised as usual. For example, this keeps a new head on BERT::

        model = WithHead(bert_base(pooling="first"), num_classes=3)
        warm_start = pretrained_model("google-bert/bert-base-uncased", skip=["head"])

    Args:
      source: a folder, or the name of a model on the Hugging Face hub.
      skip: top-level modules that are not read, such as the head for another vocabulary. They are initialised
        at random.
      under: name of the submodule that gets the weights. `None` means the whole model.
      revision: commit on the hub. `None` means the newest commit.
    """

    def start(model_shapes: Variables) -> Variables:
        shapes = without_adapters(model_shapes["params"])
        if under is not None and under not in shapes:
            raise UserError(
                f"under={under!r} is not a module of the model; it must be one of {', '.join(shapes)}"
            )
        shapes = shapes if under is None else shapes[under]
        folder = local_copy(source, revision, ["config.json"])
        family, model = _described(folder)
        found = read_family(folder, family, family.of_shapes(model, shapes))
        if is_stacked(shapes):
            found = stack_found(found)
        for module in skip:
            if module not in shapes and all(path[1] != module for path in found):
                raise UserError(
                    f"skip={module!r} is neither a module of the model nor of {source}; remove or correct it"
                )
        found = {path: tensor for path, tensor in found.items() if path[1] not in skip}
        wanted = {
            path: leaf for path, leaf in flatten_dict({"params": shapes}).items() if path[1] not in skip
        }
        loaded = fit_to(str(source), found, wanted)
        params = unflatten_dict({path[1:]: a.astype(wanted[path].dtype) for path, a in loaded.items()})
        return {"params": params if under is None else {under: params}}

    return start


def _config(folder: Path) -> Config:
    values = read_json(folder / "config.json") if folder.is_dir() else None
    if not isinstance(values, dict):
        raise UserError(f"{folder} has no config.json, which describes the model; give the folder of a model")
    return Config(str(folder), values)


def _described(folder: Path, options: Mapping[str, Any] | None = None) -> tuple[Family, Any]:
    """Returns the family and the module that a config.json describes, with other attributes."""
    config = _config(folder)
    model_type = config.values.get("model_type")
    families = list(dict.fromkeys(_FAMILIES.values()))
    for family in families:
        if model_type in family.model_types:
            model = family.model_of(config)
            base = family.base_of(model)
            attributes = [name for name in type(base).__dataclass_fields__ if name not in ("parent", "name")]
            if unknown := sorted((options or {}).keys() - set(attributes)):
                raise UserError(
                    f"{type(base).__name__} has no attribute {unknown[0]}; it has {', '.join(attributes)}"
                )
            return family, family.with_base(model, base.clone(**(options or {})))
    known = ", ".join(name for family in families for name in family.model_types)
    raise UserError(f"{folder}: config.json has model_type={model_type!r}; load_model reads {known}")
