"""The house's rules that a machine can check: which room imports which, and who touches the outside."""

import ast
import graphlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dl

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "dl").rglob("*.py"))

# From top to bottom: a room imports only rooms below it. WORDS are the files at the top of dl/ that an
# experiment is written in, and `errors` is below all. `dl/__init__.py` and `dl/__main__.py` are doors: they
# import what they hand out.
ROOMS = [
    "cli",
    "report",
    "studies",
    "analysis",
    "inference",
    "diagnostics",
    "training",
    "runs",
    "generation",
    "methods",
    "data",
    "models",
    "envs",
    "evaluation",
    "WORDS",
    "system",
    "errors",
]
DOORS = ("dl", "dl.__main__")

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

# The only modules that read or write files, ask the clock, or look at the environment.
TOUCHES_THE_OUTSIDE = {
    "dl.analysis.explained_run",  # the path of an image
    "dl.analysis.robustness",
    "dl.analysis.translation",  # the seconds of the baseline
    "dl.cli.baseline_command",
    "dl.cli.compress_command",
    "dl.cli.data_commands",
    "dl.cli.exit_status",  # ends the process
    "dl.cli.explain_command",
    "dl.cli.experiment_commands",
    "dl.cli.export_command",
    "dl.cli.generate_command",
    "dl.cli.options",
    "dl.cli.plan_command",
    "dl.cli.run_commands",
    "dl.cli.run_options",
    "dl.data.images.cache",
    "dl.data.images.classification",
    "dl.data.images.disk_dataset",
    "dl.data.images.files",
    "dl.data.images.folder",
    "dl.data.images.loading",
    "dl.data.images.prepared",
    "dl.data.text.classification",
    "dl.data.text.corpus",
    "dl.data.text.files",
    "dl.data.text.table",
    "dl.data.text.tokenizers_subword",
    "dl.data.recorded",
    "dl.data.text.language_modeling",
    "dl.data.text.token_files",
    "dl.data.text.token_folders",
    "dl.data.text.token_writer",
    "dl.data.text.translation",
    "dl.data.tfds.bucket_copy",
    "dl.data.tfds.builders",
    "dl.data.tfds.cifar",
    "dl.data.tfds.download",
    "dl.data.tfds.find",
    "dl.data.tfds.folders",
    "dl.data.tfds.prepared",
    "dl.data.tfds.records",
    "dl.evaluation.baselines.classical",  # the seconds of the models
    "dl.inference.check",
    "dl.inference.export",
    "dl.inference.exported",
    "dl.diagnostics.plan.measure",  # the resident memory of the process
    "dl.diagnostics.plan.price",
    "dl.diagnostics.plan.target",  # the memory of this machine
    "dl.inference.load",
    "dl.inference.predict",
    "dl.inference.published",
    "dl.inference.reader",
    "dl.methods.lora",
    "dl.models.weights.files",
    "dl.models.weights.folder",
    "dl.models.weights.hugging_face",
    "dl.models.weights.pretrained",
    "dl.option_types",
    "dl.report.folds",
    "dl.report.page",
    "dl.report.record",
    "dl.runs.bucket_run",
    "dl.runs.command_line",
    "dl.runs.console",
    "dl.runs.find",
    "dl.runs.folder",
    "dl.runs.log",
    "dl.runs.mirror",
    "dl.runs.predictions.kept",
    "dl.runs.predictions.reader",
    "dl.runs.provenance",
    "dl.runs.recorded_options",
    "dl.runs.run",
    "dl.runs.streams",
    "dl.sharding",
    "dl.studies.benchmark",
    "dl.studies.benchmark_tables",
    "dl.studies.compare",
    "dl.studies.compress",
    "dl.studies.compression_measures",
    "dl.studies.compression_table",
    "dl.studies.folder",
    "dl.studies.learning_curve",
    "dl.studies.runs",
    "dl.studies.sweep",
    "dl.studies.workers",
    "dl.system.allocator",  # the settings that the environment names
    "dl.system.bucket",
    "dl.system.bucket_lock",
    "dl.system.channel",
    "dl.system.claims",
    "dl.system.cluster",
    "dl.system.compilation_cache",
    "dl.system.cores",
    "dl.system.files",
    "dl.system.json_files",
    "dl.system.locks",
    "dl.system.onednn.calls",  # the instructions of the processor
    "dl.training.baseline",
    "dl.training.checkpoint",
    "dl.training.identity",
    "dl.training.loop",
    "dl.training.memory",
    "dl.training.processes",
    "dl.training.advance",
    "dl.training.profiler",
    "dl.training.program",
    "dl.training.progress",
    "dl.training.result",
    "dl.training.session",
    "dl.training.signals",
    "dl.warm_start",
}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports_of(module):
    """Returns what a module imports, anywhere in it: names of modules, ours and others'."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found


GRAPH = {module: imports_of(module) & MODULES.keys() - {module} for module in MODULES}


def room_of(module):
    """Returns the room that a module lies in, or WORDS."""
    room = module.split(".")[1]
    return room if room in ROOMS else "WORDS"


def test_no_module_imports_itself_by_way_of_others():
    order = list(graphlib.TopologicalSorter(GRAPH).static_order())
    assert len(order) == len(MODULES)


@pytest.mark.parametrize("module", [module for module in MODULES if module not in DOORS])
def test_a_room_imports_only_rooms_below_it(module):
    own = ROOMS.index(room_of(module))
    upwards = {name for name in GRAPH[module] if name in DOORS or ROOMS.index(room_of(name)) < own}
    assert not upwards


@pytest.mark.parametrize("room", [room for room in ROOMS if (ROOT / "dl" / room).is_dir()])
def test_a_room_says_what_lives_there_and_what_to_read_first(room):
    about = ast.get_docstring(ast.parse((ROOT / "dl" / room / "__init__.py").read_text(encoding="utf-8")))
    assert about
    assert "import" in about
    assert "Read `" in about.replace("\n", " ")


@pytest.mark.parametrize("module", MODULES)
def test_pure_modules_touch_neither_disk_nor_clock_nor_environment(module):
    if module in TOUCHES_THE_OUTSIDE:
        return
    assert not {name.split(".")[0] for name in imports_of(module)} & OUTSIDE


@pytest.mark.parametrize("module", MODULES)
def test_no_module_writes_the_environment(module):
    """It is everybody's: what a function is to know is an argument, or a context around the call."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            assert not ast.unparse(node.value).endswith("environ")
        if isinstance(node, ast.AugAssign):
            assert not ast.unparse(node.target).endswith("environ")
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert not name.endswith(("putenv", "environ.update", "environ.setdefault", "environ.pop"))


@pytest.mark.parametrize("module", MODULES)
def test_only_one_module_touches_orbax_and_none_tensorflow(module):
    used = {name.split(".")[0] for name in imports_of(module)}
    assert "tensorflow" not in used
    assert ("orbax" in used) == (module == "dl.training.checkpoint")


HEAVY = {
    "dl.report",
    "dl.training.loop",
    "dl.training.step",
    "jinja2",
    "matplotlib",
    "optuna",
    "orbax",
    "pandas",
    "PIL",
    "requests",
    "scipy.stats",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
}
# Shows the help of all commands, one after the other, and prints each with the heavy modules that it loads.
SHOWS_HELP = """
import contextlib, io, runpy, sys
from dl.cli.commands import COMMANDS
from dl.runs.find import known_experiments

heavy = set(sys.argv[1:])
commands = [("dl", "--help"), *(("dl", name, "--help") for name in COMMANDS)]
commands += [("dl", "sweep", "mnist_cnn", "--help")]
commands += [(f"experiments.{name}", "--help") for name in known_experiments()]
for module, *words in commands:
    sys.argv = [module, *words]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, (module, words, end.code)
    assert shown.getvalue(), (module, words)
    print(module, *words, *sorted(heavy & sys.modules.keys()))
    heavy -= sys.modules.keys()
"""


def lines_of(program, *words):
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_importing_dl_loads_nothing_that_is_not_used():
    program = "import sys, dl; print(*sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[1:])))"
    assert lines_of(program, "jax", "flax", "optax", *HEAVY) == [""]


@pytest.mark.slow
def test_help_loads_nothing_of_what_trains_reports_or_reads_data():
    lines = lines_of(SHOWS_HELP, *HEAVY)
    assert len(lines) > 40
    assert [line for line in lines if not line.endswith("--help")] == []


def test_the_names_of_dl_can_be_listed_and_a_wrong_one_is_an_attribute_error():
    assert set(dl.__all__) <= set(dir(dl))
    for name in dl.__all__:
        assert getattr(dl, name) is not None
    with pytest.raises(AttributeError, match="module 'dl' has no attribute 'nothing'"):
        dl.nothing  # noqa: B018


LAZY = [name for name in MODULES if "dl.system.lazy" in imports_of(name)]


@pytest.mark.parametrize("package", LAZY)
def test_a_name_that_is_imported_on_first_use_is_not_that_of_a_module(package):
    """The import of the module would set the name, and what was meant would depend on what came first."""
    for node in ast.walk(ast.parse(MODULES[package].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module != package:
            assert not {f"{package}.{alias.name}" for alias in node.names} & MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_over_300_lines_says_why_in_its_docstring(module):
    text = MODULES[module].read_text(encoding="utf-8")
    about = ast.get_docstring(ast.parse(text)) or ""
    assert len(text.splitlines()) <= 300 or re.search(r"\blong\b", about)
