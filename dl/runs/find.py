"""Finds an experiment by the name that a person, or the folder of a run, gives it.

Importing a module runs its code. What a person types is imported from wherever it lies; what a run's folder
says, only from the experiments that are installed together with `dl`.
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

EXPERIMENTS = "experiments"  # the package where a bare NAME is looked up
# Beside `dl` itself: in the checkout, or where both were installed.
INSTALLED = Path(__file__).resolve().parents[2] / EXPERIMENTS
_OF_A_FILE = "file:"  # begins the name of a module that was given as a path
_MAX_SOURCE_BYTES = 16 * 2**20
_IDENTIFIER = r"[^\W\d]\w*"


def find_experiment(name: str) -> Callable[..., Experiment]:
    """Returns the function `experiment` of a module, given as NAME, experiments.NAME or a path.

    Raises:
      UserError: there is no such module, or it has no such function.
    """
    is_path = name.endswith(".py") or "/" in name
    return _experiment_of(_load(_file_of(name)) if is_path else _import(name), name)


def find_installed(name: str, hint: str) -> Callable[..., Experiment]:
    """Returns the function `experiment` of a module beside `dl`, which a run's folder names.

    Args:
      name: as run.json has it, read without trust.
      hint: what to type for any other module.

    Raises:
      UserError: it is not one of the package `experiments` beside `dl`.
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
            f"run.json names {name!r}, and the package {EXPERIMENTS} that is loaded is another; {hint}"
        )
    return _experiment_of(importlib.import_module(name), name)


def known_experiments() -> dict[str, str]:
    """Returns the names of the package `experiments`, each with the first line of its docstring.

    A module that does not define `experiment`, such as one that was renamed, is left out.
    """
    package = _spec([EXPERIMENTS])
    found = {}
    for module in pkgutil.iter_modules(package.submodule_search_locations if package else []):
        spec = _spec([EXPERIMENTS, module.name])
        if module.ispkg or spec is None or spec.origin is None:
            continue
        try:  # read, not imported: one broken file must not hide the others
            tree = ast.parse(Path(spec.origin).read_bytes())
        except (OSError, ValueError, SyntaxError):
            found[module.name] = "cannot be read"
            continue
        if any(_defines_experiment(statement) for statement in tree.body):
            lines = (ast.get_docstring(tree) or "").splitlines()
            found[module.name] = lines[0] if lines else ""
    return found


def _defines_experiment(statement: ast.stmt) -> bool:
    """Whether a statement is a function `experiment`, or imports or assigns one."""
    if isinstance(statement, ast.ImportFrom):
        return any((alias.asname or alias.name) == "experiment" for alias in statement.names)
    if isinstance(statement, ast.Assign):
        return any(isinstance(node, ast.Name) and node.id == "experiment" for node in statement.targets)
    return isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == "experiment"


def stem_of_file(module: str) -> str | None:
    """Returns the name of the file that a module was loaded from by its path; None of other modules."""
    return Path(module.removeprefix(_OF_A_FILE)).stem if module.startswith(_OF_A_FILE) else None


def hint(word: str, known: Sequence[str]) -> str:
    """Returns the nearest known word as a question, or all of them."""
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"


def _experiment_of(module: ModuleType, name: str) -> Callable[..., Experiment]:
    experiment_fn = getattr(module, "experiment", None)
    if not callable(experiment_fn):
        raise UserError(f"{name} has no function `experiment`; give a module that defines one")
    return experiment_fn


def _import(name: str) -> ModuleType:
    parts = [*([] if "." in name else [EXPERIMENTS]), *name.split(".")]
    if _spec(parts) is not None:  # else nothing is imported, no parent either
        return importlib.import_module(".".join(parts))
    if os.path.isfile(f"{name}.py"):
        raise UserError(f"there is no experiment {name}; did you mean {name}.py?")
    if os.path.exists(name):
        _file_of(name)  # says what is wrong with it
    raise UserError(f"there is no experiment {name}; {hint(name.rpartition('.')[2], [*known_experiments()])}")


def _file_of(name: str) -> Path:
    """Returns the file that a path means, which may lack its ending."""
    path = os.path.expanduser(name)  # unlike the methods of Path, those of os.path raise nothing
    if not os.path.exists(path) and os.path.isfile(f"{path}.py"):
        path += ".py"
    if os.path.isdir(path):
        raise UserError(f"{name} is a folder; give the path of an experiment, such as {path}/NAME.py")
    if not os.path.exists(path):
        raise UserError(f"there is no file {name}; give the path of an experiment")
    if not path.endswith(".py"):
        raise UserError(f"{name} does not end in .py; give the path of an experiment")
    try:
        content = read_regular(Path(path), _MAX_SOURCE_BYTES)
        if "\0" in importlib.util.decode_source(content):
            raise ValueError
    except (ValueError, SyntaxError):  # a file of something else; what is wrong in Python is shown as it is
        raise UserError(f"{name} is not text; give the path of an experiment, a Python file") from None
    return Path(path)


def _load(path: Path) -> ModuleType:
    """Imports a file: as `python -m` knows it where it can, else under a name that no other module has."""
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
    sys.modules[name] = module  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _comes_from(spec: ModuleSpec | None, path: Path) -> bool:
    # Where there is no location the origin is a word, such as `built-in`.
    return bool(spec and spec.has_location and spec.origin and path.samefile(spec.origin))


def _spec(parts: Sequence[str]) -> ModuleSpec | None:
    """Returns where a module would be imported from. Unlike `importlib.util.find_spec`, imports no parent."""
    spec, places = None, None
    for part in parts:
        if not re.fullmatch(_IDENTIFIER, part) or (spec is not None and places is None):
            return None
        try:
            # Only the first part may be found by other means than a path, such as an editable install.
            spec = importlib.util.find_spec(part) if places is None else PathFinder.find_spec(part, places)
        except ValueError:  # of a module that has none, such as __main__
            return None
        if spec is None:
            return None
        places = spec.submodule_search_locations
    return spec


def _import_installed_package() -> ModuleType:
    """Imports the package `experiments` beside `dl`, whatever else of that name is on the path."""
    spec = PathFinder.find_spec(EXPERIMENTS, [str(INSTALLED.parent)])
    if spec is None or spec.loader is None:
        raise UserError(f"there is no package {EXPERIMENTS} beside dl; give --experiment NAME or its path")
    package = importlib.util.module_from_spec(spec)
    sys.modules[EXPERIMENTS] = package
    try:
        spec.loader.exec_module(package)
    except BaseException:
        del sys.modules[EXPERIMENTS]
        raise
    return package
