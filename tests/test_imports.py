"""The house's rules that a machine can check: who imports whom, and who touches the outside."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "dl").rglob("*.py"))

# Each module may import modules of lower layers, and its own.
LAYERS = [
    ("experiments",),
    ("dl.cli", "dl.__main__"),
    ("dl.experiment_commands", "dl.run_commands"),
    (
        "dl.compare",
        "dl.sweep",
        "dl.trials",
        "dl.trial_errors",
        "dl.probe",
        "dl.learning_curve",
        "dl.curve_plan",
    ),
    ("dl.predict", "dl.rebuild", "dl.robustness"),
    ("dl", "dl.command", "dl.trained", "dl.race", "dl.cross_validation", "dl.study_folder"),
    ("dl.report",),
    ("dl.loop",),
    ("dl.session",),
    ("dl.program", "dl.summary", "dl.evaluate", "dl.inputs", "dl.predictions", "dl.lookup"),
    (
        "dl.run_options",
        "dl.profiling",
        "dl.nans",
        "dl.debugging",
        "dl.rate_finder",
        "dl.preview",
        "dl.likeness",
    ),
    ("dl.fingerprint",),
    ("dl.experiment", "dl.run", "dl.checkpoint", "dl.log", "dl.progress", "dl.console", "dl.options"),
    ("dl.provenance", "dl.identity", "dl.streams"),
    ("dl.comparison", "dl.pairing", "dl.corruption_errors", "dl.search", "dl.sweep_report", "dl.power_law"),
    ("dl.race_report",),
    ("dl.selection", "dl.initial", "dl.tabulate", "dl.tables"),
    (
        "dl.step",
        "dl.data",
        "dl.optimizers",
        "dl.descent",
        "dl.attainable",
        "dl.muon",
        "dl.losses",
        "dl.gradients",
        "dl.signals",
        "dl.pretrained",
    ),
    ("dl.evaluation",),
    ("dl.state", "dl.digest", "dl.flops", "dl.models", "dl.torch_names", "dl.schedules"),
    ("dl.regularizers", "dl.freezing", "dl.precision"),
    ("dl.sharding", "dl.capacity", "dl.kinds", "dl.types", "dl.members", "dl.outermost"),
    ("dl.json_files",),
    ("dl.files",),
    ("dl.locks",),
    ("dl.metrics", "dl.ranges"),
    ("dl.errors", "dl.labels", "dl.text"),
]
OUTSIDE = {
    "os",
    "time",
    "pathlib",
    "shutil",
    "tempfile",
    "subprocess",
    "socket",
    "datetime",
    "glob",
}
MAY_TOUCH_THE_OUTSIDE = (
    *("dl.session", "dl.program", "dl.progress", "dl.log", "dl.console"),
    *("dl.checkpoint", "dl.initial", "dl.command", "dl.cli", "dl.run", "dl.data", "dl.pretrained", "dl.race"),
    *("dl.profiling", "dl.predictions", "dl.predict", "dl.lookup", "dl.rebuild", "dl.report"),
    *("dl.capacity", "dl.options", "dl.experiment_commands", "dl.run_commands"),
    *("dl.files", "dl.locks", "dl.json_files", "dl.provenance", "dl.fingerprint", "dl.streams"),
    *("dl.compare", "dl.sweep", "dl.study_folder", "dl.learning_curve", "dl.robustness"),
)


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Returns the modules that a file imports, as written."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or ""]
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def layer_of(module):
    """Returns the layer of the longest listed name that the module is or lies under."""
    listed = {name: number for number, names in enumerate(LAYERS) for name in names}
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in listed and (name != "dl" or module == "dl"):
            return listed[name]
    return None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    own = layer_of(name_of(path))
    assert own is not None, f"{name_of(path)} has no place in LAYERS"
    for imported in imports_of(path):
        if imported.startswith("dl."):
            theirs = layer_of(imported)
            assert theirs is None or theirs >= own, f"{name_of(path)} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_pure_modules_touch_neither_disk_nor_clock_nor_environment(path):
    if name_of(path).startswith(MAY_TOUCH_THE_OUTSIDE):
        return
    used = {name.split(".")[0] for name in imports_of(path)}
    assert not used & OUTSIDE


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_one_module_touches_orbax_and_none_tensorflow(path):
    used = {name.split(".")[0] for name in imports_of(path)}
    assert "tensorflow" not in used
    if name_of(path) != "dl.checkpoint":
        assert "orbax" not in used


def test_importing_dl_loads_nothing_heavy_that_it_does_not_need():
    heavy = (
        "tensorflow",
        "tensorflow_datasets",
        "sklearn",
        "matplotlib",
        "jinja2",
        "orbax.checkpoint",
        "PIL",
    )
    program = f"import sys, dl, dl.loop; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
