"""Packages whose names are imported on first use (PEP 562), so that nobody waits for what they do not use."""

import ast
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from typing import Any


def on_first_use(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__getattr__` and `__dir__` of a package, for what it imports under `if TYPE_CHECKING:`.

        if TYPE_CHECKING:
            from dl.data.splits import ArraySplits
        else:
            __getattr__, __dir__ = on_first_use(__name__)

    A name must not be that of a module of the package, unless it means the module: what imports the module
    would set it.

    Args:
      package: the name of the package. Its source is read at the first use of a name.
    """

    def get(name: str) -> Any:
        places = _places(package)
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(places[name])
        # `from dl import task` names a module, `from dl.errors import UserError` what lies in one.
        value = module if places[name] == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *_places(package)})


@functools.cache
def _places(package: str) -> Mapping[str, str]:
    """Returns the module in which each name of a package lies."""
    tree = ast.parse(pkgutil.get_data(package, "__init__.py") or b"")
    [block] = [x for x in tree.body if isinstance(x, ast.If) and ast.unparse(x.test) == "TYPE_CHECKING"]
    return {
        alias.name: f"{package}.{alias.name}" if node.module == package else str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
