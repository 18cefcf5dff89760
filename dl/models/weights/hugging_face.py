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
from dl.models.blocks.scan import is_stacked, stack_layers, unstack_layers
from dl.models.gpt2 import GPT2
from dl.models.llama import Llama
from dl.models.weights import gpt2, llama
from dl.models.weights.family import Config, Family
from dl.models.weights.files import fit_to, local_copy, read_tensors, write_tensors
from dl.system.files import replace_text, storage_error
from dl.system.json_files import read_json
from dl.types import Variables
from dl.warm_start import ADAPTERS, WarmStart, without_adapters

_FAMILIES: Mapping[type[nn.Module], Family] = {GPT2: gpt2.FAMILY, Llama: llama.FAMILY}
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model", "chat_template.jinja"),
)
_KEPT_FILES = (*_TOKENIZER_FILES, "generation_config.json")
_KEPT_VALUES = r".*_token_id|id2label|label2id|max_position_embeddings"
Found = dict[tuple[str, ...], tuple[str, np.ndarray]]


def load_model(
    source: str | Path, *, dtype: Any = None, revision: str | None = None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Returns the Linen module that a config.json describes, and its variables.

    It reads GPT-2, and the models of the architecture of Llama: Llama 2 and 3, Mistral and Qwen 3. For
    example, this computes the logits of GPT-2::

        model, variables = load_model("openai-community/gpt2")
        logits_BTV = model.apply(variables, tokens_BT)

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
    family, model = _described(folder)
    if unknown := sorted(options.keys() - type(model).__dataclass_fields__):
        known = ", ".join(name for name in type(model).__dataclass_fields__ if name not in ("parent", "name"))
        raise UserError(f"{type(model).__name__} has no attribute {unknown[0]}; it has {known}")
    model = model.clone(**options)
    found = _read(folder, family, model)
    if model.is_scanned:
        found = _stacked(found)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *family.inputs)
    loaded = fit_to(str(source), found, flatten_dict(shapes))
    if dtype is not None:
        loaded = {path: array.astype(dtype) for path, array in loaded.items()}
    dtypes = {array.dtype for array in loaded.values()}
    if model.dtype is None and len(dtypes) == 1 and dtypes != {np.dtype(np.float32)}:
        model = model.clone(dtype=dtypes.pop())
    return model, jax.tree.map(jnp.asarray, unflatten_dict(loaded))


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
      like: folder that the model came from. Its tokenizer, its generation_config.json, and the ids of special
        tokens and names of labels in its config.json are kept.
      max_shard_bytes: largest number of bytes of a file, unless one tensor alone is larger.

    Raises:
      UserError: the family of the model is not known, parameters are missing or unexpected, or the folder
        cannot be written.
    """
    family = next((known for kind, known in _FAMILIES.items() if type(model) is kind), None)
    if family is None:
        known = ", ".join(kind.__name__ for kind in _FAMILIES)
        raise UserError(f"save_model cannot write a {type(model).__name__}; it writes {known}")
    folder = Path(folder)
    held = [*folder.glob("*.safetensors*"), *folder.glob("config.json")]
    if held:
        raise UserError(f"{folder} holds a model already ({held[0].name}); choose another folder")
    tensors = _written(family, model, variables["params"])
    dtypes = {str(array.dtype) for array in tensors.values()}
    config = family.config_of(model) | {"torch_dtype": dtypes.pop() if len(dtypes) == 1 else "float32"}
    if like is not None:
        values = _config(Path(like)).values
        config |= {name: value for name, value in values.items() if re.fullmatch(_KEPT_VALUES, name)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_shards(folder, tensors, max_shard_bytes)
        for name in _KEPT_FILES if like is not None else ():
            if (Path(like) / name).is_file():  # type: ignore[arg-type]
                shutil.copyfile(Path(like) / name, folder / name)  # type: ignore[arg-type]
        replace_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise storage_error(folder, error) from error


def pretrained_model(
    source: str | Path, *, skip: Sequence[str] = (), under: str | None = None, revision: str | None = None
) -> WarmStart:
    """Returns a warm start of a model, or of its submodule, with the weights of a folder or of the hub.

    The parameters get the dtypes of the model. The layers of the model may be scanned. Adapters of
    `methods.lora` are initialised as usual. For example, this keeps a new head::

        Experiment(task=task.language_model(model), warm_start=pretrained_model(folder, skip=["head"]), …)

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
        found = _read(folder, *_described(folder))
        if is_stacked(shapes):
            found = _stacked(found)
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


def _described(folder: Path) -> tuple[Family, Any]:
    """Returns the family and the module that a config.json describes."""
    config = _config(folder)
    model_type = config.values.get("model_type")
    for family in _FAMILIES.values():
        if model_type in family.model_types:
            return family, family.model_of(config)
    known = ", ".join(name for family in _FAMILIES.values() for name in family.model_types)
    raise UserError(f"{folder}: config.json has model_type={model_type!r}; load_model reads {known}")


def _read(folder: Path, family: Family, model: Any) -> Found:
    """Returns the name and values of the tensor of each path, without those that the file lacks."""
    rows = {row.name.removeprefix(family.prefix): row for row in family.tensors(model)}
    copies = {
        copy.removeprefix(family.prefix): original.removeprefix(family.prefix)
        for copy, original in family.copies(model).items()
    }
    tensors: dict[str, np.ndarray] = {}
    for full_name, tensor in read_tensors(folder):
        name = full_name.removeprefix(family.prefix)
        if re.search(family.ignored, name):
            continue
        if name not in rows and name not in copies:
            raise UserError(
                f"{folder}: the tensor {full_name!r} does not belong to the {type(model).__name__} that its "
                "config.json describes; use another model"
            )
        tensors[name] = tensor
    for copy, original in copies.items():
        if copy in tensors:
            values = tensors.pop(copy)
            if not np.array_equal(tensors.setdefault(original, values), values):
                raise UserError(
                    f"{folder}: the tensors {copy!r} and {original!r} differ, and the config.json says that "
                    "they are tied; use another model"
                )
    found: Found = {}
    for name, tensor in tensors.items():
        row = rows[name]
        parts = row.layout.split(tensor, len(row.paths))
        # A fused tensor of a wrong shape stays whole, so that a later check reports its shape.
        for path, part in zip(row.paths, parts, strict=False):
            found["params", *path.split("/")] = row.name, part
    return found


def _stacked(found: Found) -> Found:
    """Returns what was read for a model whose layers are scanned."""
    arrays = stack_layers(unflatten_dict({path: array for path, (_, array) in found.items()}))

    def name(path: tuple[str, ...]) -> str:
        return found[path if path in found else tuple("layer0" if p == "layer" else p for p in path)][0]

    return {path: (name(path), array) for path, array in flatten_dict(arrays).items()}


def _written(family: Family, model: Any, params: Any) -> dict[str, np.ndarray]:
    """Returns the tensors of a model by name."""
    if model.is_scanned:
        params = unstack_layers(params)
    leaves = flatten_dict(params, sep="/")
    rows = family.tensors(model)
    known = {path for row in rows for path in row.paths}
    if adapters := [path for path in leaves if path.rpartition("/")[2] in ADAPTERS]:
        raise UserError(
            f"the parameters hold adapters ({adapters[0]}); merge them first, by dl.methods.lora.merge"
        )
    if missing := sorted(known - leaves.keys()):
        raise UserError(f"the variables lack {missing[0]} of the model; give those of the same model")
    if unknown := sorted(leaves.keys() - known):
        raise UserError(f"the model has no {unknown[0]}; give the variables of the same model")
    return {row.name: row.layout.join([np.asarray(leaves[path]) for path in row.paths]) for row in rows}


def _write_shards(folder: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int) -> None:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, array in tensors.items():
        if shards[-1] and size + array.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    count = len(shards)
    files = {
        "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }
    for name, shard in files.items():
        write_tensors(folder / name, shard, {"format": "pt"})  # transformers refuses a file without it
    if count > 1:
        index = {
            "metadata": {"total_size": sum(array.nbytes for array in tensors.values())},
            "weight_map": {tensor: name for name, shard in files.items() for tensor in shard},
        }
        replace_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
