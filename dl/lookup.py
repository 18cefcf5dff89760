"""Finds an experiment by the name that a person, or the folder of a run, gives it."""

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from dl.errors import UserError
from dl.experiment import Experiment

EXPERIMENTS = "experiments"  # the package where a bare NAME is looked up


def find_experiment(name: str) -> Callable[..., Experiment]:
    """Returns the function `experiment` of a module, given as NAME, experiments.NAME or a path."""
    module = _load(Path(name)) if name.endswith(".py") else _import(name)
    experiment_fn = getattr(module, "experiment", None)
    if not callable(experiment_fn):
        raise UserError(f"{name} has no function `experiment`; give a module that defines one")
    return experiment_fn


def _import(name: str) -> ModuleType:
    full_name = name if "." in name else f"{EXPERIMENTS}.{name}"
    try:
        return importlib.import_module(full_name)
    except ModuleNotFoundError as error:
        if not error.name or not f"{full_name}.".startswith(f"{error.name}."):
            raise  # the experiment was found, and lacks something itself
    package = importlib.import_module(EXPERIMENTS) if importlib.util.find_spec(EXPERIMENTS) else None
    known = [module.name for module in pkgutil.iter_modules(package.__path__)] if package else []
    raise UserError(f"there is no experiment {name}; {hint(name.rpartition('.')[2], known)}")


def _load(path: Path) -> ModuleType:
    if not path.exists():
        raise UserError(f"there is no file {path}; give the path of an experiment")
    if not path.is_absolute() and importlib.util.find_spec(parts := ".".join(path.with_suffix("").parts)):
        return importlib.import_module(parts)  # as `python -m` knows it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def hint(word: str, known: Sequence[str]) -> str:
    """Returns the nearest known word as a question, or all of them."""
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
