"""Exports a trained model to a folder that needs neither `dl` nor the code of its experiment.

The functions of the model are lowered by `jax.export` to StableHLO for several platforms and any batch size.
JAX promises to read them for six months after the version that wrote them. The folder also holds what the
model can be exported from again with later versions: the variables, the options and the tokenizer.

The variables are arguments of the functions, and lie beside them in one safetensors file. As constants they
would be stored once for each function, would be limited to 2 GiB, and would be folded at compilation.

Needs the extra `export`: pip install 'dl[export]'.
"""

import functools
import importlib.util
import inspect
import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from dl.data.recorded import files_of, itself
from dl.errors import UserError
from dl.experiment import Experiment
from dl.inference import check, reader
from dl.inference.exported import FORMAT, NO_FLATBUFFERS, ExportedModel, load_exported
from dl.inference.functions import (
    Decoding,
    Function,
    as_tree,
    by_name,
    decoding_functions,
    decoding_of,
    predict_function,
)
from dl.inference.self_test import self_test
from dl.models.weights.files import write_tensors
from dl.runs.digest import tree_digest
from dl.runs.folder import RunFolder
from dl.runs.provenance import software
from dl.system.files import expand, file_digest, replace_text, storage_error
from dl.system.json_files import write_json
from dl.system.text import printable
from dl.training.result import Result
from dl.types import Variables

PLATFORMS = ("cpu", "cuda", "tpu")

# Largest difference of the outputs from those of the self-test, relative to the largest one. Accelerators
# round the factors of float32 products to 10 or 8 bits. Numbers of 16 bits have as few.
_EXACT, _ROUGH = 1e-5, 3e-2


class Lowered(NamedTuple):
    """The functions of a model, each of them lowered, and what writes sequences with it."""

    functions: list[Function]
    programs: list[export.Exported]
    decoding: Decoding | None


def export_model(result: Result, folder: Path | str, platforms: Sequence[str] = PLATFORMS) -> ExportedModel:
    """Writes the model of a run to a new folder, runs its self-test and returns the exported model.

    The self-test is left out if this machine has none of the platforms.

    Args:
      result: the run, for example `dl.load_run(folder)`.
      folder: the new folder.
      platforms: platforms that the model is lowered for: `cpu`, `cuda`, `rocm` or `tpu`. None of them need be
        on this machine.

    Raises:
      UserError: the folder exists or cannot be written, the model cannot be exported, its outputs depend on
        the other examples of a batch, or several seeds were trained.
    """
    folder = expand(Path(folder))
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError(NO_FLATBUFFERS)
    if result.record.get("members"):
        raise UserError("several seeds were trained at the same time; export a run of one seed")
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{folder} exists; choose another folder, or remove it") from None
    except OSError as error:
        raise storage_error(folder, error) from error
    try:
        variables = jax.tree.map(np.asarray, dict(result.variables))
        lowered = _lowered(result.experiment, variables, platforms)
        _write(folder, result, variables, lowered, _self_test(result.experiment, variables, lowered))
        model = load_exported(folder)
        if export.default_export_platform() in platforms:
            model.check()
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise storage_error(folder, error) from error
        raise
    return model


def variables_of(folder: Path, like: Variables) -> Variables:
    """Returns the variables of an exported model.

    Args:
      folder: the folder of the exported model.
      like: shapes of the variables of its experiment.

    Raises:
      UserError: the folder is damaged, or the variables have other names or shapes.
    """
    return as_tree(load_exported(folder).variables, like)


def _lowered(experiment: Experiment, variables: Variables, platforms: Sequence[str]) -> Lowered:
    try:
        return _lower(experiment, variables, platforms)
    except UserError:
        raise
    except Exception as error:  # JAX and models raise errors of any type
        possible = [p for p in platforms if len(platforms) > 1 and _can_lower(experiment, variables, p)]
        advice = "use a model without callbacks and without kernels that jax.export does not support"
        if possible:
            advice = f"it can be for {' and '.join(possible)} alone: --platforms {' '.join(possible)}"
        raise UserError(
            f"the model cannot be exported for {', '.join(platforms)} ({_one_line(error)}); {advice}"
        ) from error


def _lower(experiment: Experiment, variables: Variables, platforms: Sequence[str]) -> Lowered:
    shapes, named = jax.eval_shape(lambda: (variables, by_name(variables)))
    decoding = decoding_of(experiment)
    functions = [predict_function(experiment, shapes, platforms[0])]
    if decoding is not None:
        functions += decoding_functions(decoding, shapes)
    lower = functools.partial(export.export, platforms=platforms)
    lowered = [lower(jax.jit(function.call))(named, *function.arguments) for function in functions]
    return Lowered(functions, lowered, decoding)


def _can_lower(experiment: Experiment, variables: Variables, platform: str) -> bool:
    try:
        _lower(experiment, variables, [platform])
    except Exception:
        return False
    return True


def _self_test(experiment: Experiment, variables: Variables, lowered: Lowered) -> dict[str, np.ndarray]:
    try:
        return self_test(experiment, variables, lowered.functions[0], lowered.decoding)
    except Exception as error:
        raise UserError(
            f"the model does not run on this machine ({_one_line(error)}), and the self-test needs its "
            "outputs; export it where it runs"
        ) from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(' '.join(str(error).split()))[:300]}"


def _write(
    folder: Path, result: Result, variables: Variables, lowered: Lowered, test: dict[str, np.ndarray]
) -> None:
    for function, program in zip(lowered.functions, lowered.programs, strict=True):
        (folder / f"{function.name}.jax_export").write_bytes(program.serialize())
    write_tensors(folder / "variables.safetensors", by_name(variables))
    write_tensors(folder / "self_test.safetensors", test)
    for module in (reader, check):
        name = f"{module.__name__.rpartition('.')[2]}.py"
        (folder / name).write_text(inspect.getsource(module), encoding="utf-8")
    for name, text in files_of(result.experiment.data).items():
        replace_text(folder / name, text)
    if (run_record := _run_record(result)) is not None:
        write_json(folder / "run.json", run_record)
    files = sorted(path.name for path in folder.iterdir())
    record = {**_record(result, variables, lowered, folder), "files": files}
    (folder / "export.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sums = [f"{file_digest(folder / name)}  {name}\n" for name in sorted([*files, "export.json"])]
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def _run_record(result: Result) -> dict[str, Any] | None:
    """Returns the content of run.json without the machines and command lines that trained the model."""
    record = None if result.folder is None else RunFolder(result.folder).record
    return None if record is None else {key: value for key, value in record.items() if key != "starts"}


def _record(result: Result, variables: Variables, lowered: Lowered, folder: Path) -> dict[str, Any]:
    """Returns the content of export.json without the names of the files."""
    experiment, platforms = result.experiment, lowered.programs[0].platforms
    kind, run = experiment.task.kind, None if result.folder is None else RunFolder(result.folder)
    is_exact = not any(re.search(r"f16>", program.mlir_module()) for program in lowered.programs)
    words = ["python", "-m", "dl", "export", str(result.folder), "--out", str(folder)]
    if platforms != PLATFORMS:
        words += ["--platforms", *platforms]
    return {
        "format": FORMAT,
        "experiment": None if run is None else run.name,
        "options": None if run is None else run.options,
        "command": None if run is None else shlex.join(words),
        "kind": None if kind is None else kind.name,
        "input_name": experiment.task.input_name,
        "class_names": list(map(str, getattr(itself(experiment.data), "class_names", ()))),
        "length": None if lowered.decoding is None else lowered.decoding.length,
        "params_digest": tree_digest(variables["params"]) if "params" in variables else None,
        "platforms": list(platforms),
        "tolerance": {p: _EXACT if is_exact and p == "cpu" else _ROUGH for p in platforms},
        "functions": {
            function.name: {
                "inputs": jax.tree.map(_described, function.arguments[-1]),
                "outputs": [_described(leaf) for leaf in program.out_avals],
            }
            for function, program in zip(lowered.functions, lowered.programs, strict=True)
        },
        **software(),
    }


def _described(leaf: Any) -> dict[str, Any]:
    sizes = [size if isinstance(size, int) else str(size) for size in leaf.shape]
    return {"dtype": leaf.dtype.name, "shape": sizes}
