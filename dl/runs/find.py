"""Finds an experiment by a name that a user types, or that the folder of a run records.

Importing a module runs its code. A name that a user types is imported from any place. A name in the folder
of a run is imported only if it is an experiment that is installed together with `dl`.
"""

import ast
import difflib
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

from dl.errors import UserError
from dl.experiment import Experiment
from dl.system.files import read_regular

EXPERIMENTS = "experiments"  # the package that contains the experiment of a NAME without dots
# The directory that contains `dl`: the checkout, or the directory where both are installed.
INSTALLED = Path(__file__).resolve().parents[2] / EXPERIMENTS
_OF_A_FILE = "file:"  # prefix of the name of a module that was given as a path
_MAX_SOURCE_BYTES = 16 * 2**20
_IDENTIFIER = r"[^\W\d]\w*"


def find_experiment(name: str) -> Callable[..., Experiment]:
    """Returns the function `experiment` of a module, given as NAME, experiments.NAME or a path.

    Raises:
      UserError: the module does not exist, or it does not define the function.
    """
    is_path = name.endswith(".py") or "/" in name
    return _experiment_of(_load(_file_of(name)) if is_path else _import(name), name)


def find_installed(name: str, hint: str) -> Callable[..., Experiment]:
    """Returns the function `experiment` of an installed module that the folder of a run names.

    Args:
      name: the name in run.json, which is not trusted.
      hint: what the user can type to import another module.

    Raises:
      UserError: the module is not in the package `experiments` beside `dl`.
    """
    parts = name.split(".")
    if len(name) > 200 or len(parts) < 2 or not all(re.fullmatch(_IDENTIFIER, part) for part in parts):
        raise UserError(f"run.json names {name[:80]!r}, which is not an installed experiment; {hint}")
    file = INSTALLED.joinpath(*parts[1:]).with_suffix(".py")
    if parts[0] != EXPERIMENTS or not file.is_file() or INSTALLED not in file.resolve().parents:
        raise UserError(f"run.json names {name!r}, which is not an installed experiment; {hint}")
    package = sys.modules.get(EXPERIMENTS) or _import_installed_package()
    if {Path(place).resolve() for place in package.__path__} != {INSTALLED}:
        raise UserError(
            f"run.json names {name!r}, but another package {EXPERIMENTS} is imported already; {hint}"
        )
    return _experiment_of(importlib.import_module(name), name)


def known_experiments() -> dict[str, str]:
    """Returns the experiments in the package `experiments`: names and first lines of docstrings.

    A module that does not define `experiment`, such as one that was renamed, is left out.
    """
    package = _spec([EXPERIMENTS])
    found = {}
    for module in pkgutil.iter_modules(package.submodule_search_locations if package else []):
        spec = _spec([EXPERIMENTS, module.name])
        if module.ispkg or spec is None or spec.origin is None:
            continue
        try:  # the file is parsed, not imported: a broken file must not hide the others
            tree = ast.parse(Path(spec.origin).read_bytes())
        except (OSError, ValueError, SyntaxError):
            found[module.name] = "cannot be read"
            continue
        if any(_defines_experiment(statement) for statement in tree.body):
            lines = (ast.get_docstring(tree) or "").splitlines()
            found[module.name] = lines[0] if lines else ""
    return found


def _defines_experiment(statement: ast.stmt) -> bool:
    """Whether a statement defines, imports or assigns `experiment`."""
    if isinstance(statement, ast.ImportFrom):
        return any((alias.asname or alias.name) == "experiment" for alias in statement.names)
    if isinstance(statement, ast.Assign):
        return any(isinstance(node, ast.Name) and node.id == "experiment" for node in statement.targets)
    return isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == "experiment"


def stem_of_file(module: str) -> str | None:
    """Returns the path that a module was loaded by; `None` if it was not loaded by a path."""
    return Path(module.removeprefix(_OF_A_FILE)).stem if module.startswith(_OF_A_FILE) else None


def hint(word: str, known: Sequence[str]) -> str:
    """Returns the most similar known name as a question, or a list of all known names."""
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"


def _experiment_of(module: ModuleType, name: str) -> Callable[..., Experiment]:
    experiment_fn = getattr(module, "experiment", None)
    if not callable(experiment_fn):
        raise UserError(f"{name} has no function `experiment`; give a module that defines one")
    return experiment_fn


def _import(name: str) -> ModuleType:
    parts = [*([] if "." in name else [EXPERIMENTS]), *name.split(".")]
    if _spec(parts) is not None:  # else not even a parent package is imported
        return importlib.import_module(".".join(parts))
    if os.path.isfile(f"{name}.py"):
        raise UserError(f"there is no experiment {name}; did you mean {name}.py?")
    if os.path.exists(name):
        _file_of(name)  # raises an error about the path
    raise UserError(f"there is no experiment {name}; {hint(name.rpartition('.')[2], [*known_experiments()])}")


def _file_of(name: str) -> Path:
    """Returns the file of a path; the ending .py may be left out."""
    path = os.path.expanduser(name)  # os.path does not raise errors here, but Path does
    if not os.path.exists(path) and os.path.isfile(f"{path}.py"):
        path += ".py"
    if os.path.isdir(path):
        raise UserError(f"{name} is a folder; give the path of an experiment, such as {path}/NAME.py")
    if not os.path.exists(path):
        raise UserError(f"the file {name} does not exist; give the path of an experiment")
    if not path.endswith(".py"):
        raise UserError(f"{name} does not end in .py; give the path of an experiment")
    try:
        content = read_regular(Path(path), _MAX_SOURCE_BYTES)
        if "\0" in importlib.util.decode_source(content):
            raise ValueError
    except (ValueError, SyntaxError):  # not a text file; a mistake in Python code is raised below
        raise UserError(f"{name} is not text; give the path of an experiment, a Python file") from None
    return Path(path)


def _load(path: Path) -> ModuleType:
    """Imports a file under its module name if it has one, else under a unique name."""
    parts = path.with_suffix("").parts
    if not path.is_absolute() and _comes_from(_spec(parts), path):
        module = importlib.import_module(".".join(parts))
        if module.__file__ and path.samefile(module.__file__):
            return module
    name = f"{_OF_A_FILE}{path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path.resolve())))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _comes_from(spec: ModuleSpec | None, path: Path) -> bool:
    # Without a location the origin is not a path, for example `built-in`.
    return bool(spec and spec.has_location and spec.origin and path.samefile(spec.origin))


def _spec(parts: Sequence[str]) -> ModuleSpec | None:
    """Returns where a module is imported from. Unlike `importlib.util.find_spec`, it imports no parents."""
    spec, places = None, None
    for part in parts:
        if not re.fullmatch(_IDENTIFIER, part) or (spec is not None and places is None):
            return None
        try:
            # Only the first part can be found by an import hook, such as that of an editable install.
            spec = importlib.util.find_spec(part) if places is None else PathFinder.find_spec(part, places)
        except ValueError:  # a module without a spec, such as __main__
            return None
        if spec is None:
            return None
        places = spec.submodule_search_locations
    return spec


def _import_installed_package() -> ModuleType:
    """Imports the package `experiments` beside `dl`, even if another one is on the path."""
    spec = PathFinder.find_spec(EXPERIMENTS, [str(INSTALLED.parent)])
    if spec is None or spec.loader is None:
        raise UserError(
            f"there is no package {EXPERIMENTS} beside dl; add --experiment NAME, or the path of its file"
        )
    package = importlib.util.module_from_spec(spec)
    sys.modules[EXPERIMENTS] = package
    try:
        spec.loader.exec_module(package)
    except BaseException:
        del sys.modules[EXPERIMENTS]
        raise
    return package
