"""What a stranger's folder, file or name must not do: run code, overwrite, hang, or end in a traceback."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dl.errors import UserError
from dl.inference.load import rebuild
from dl.models.weights.files import load_safetensors, read_tensors, save_safetensors
from dl.report import write_report
from dl.runs.find import find_experiment, find_installed
from dl.system.files import is_leftover, read_regular, remove_leftovers, replace_file, replace_text
from dl.system.json_files import read_json, write_json

NAME = "experiments.mlp_342"
CODE = "from pathlib import Path\nPath({trace!r}).touch()\ndef experiment():\n    return None\n"
ROOT = Path(__file__).parents[2]


def run_folder(folder, experiment=NAME, options=None, **more):
    """Writes a folder of a run as a stranger would; returns its path as text."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"experiment": experiment, "code": "", "options": options or {}, **more}
    (folder / "run.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return str(folder)


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """A working directory with code of a stranger's in it; yields the file that the code leaves when run."""
    trace = tmp_path / "trace"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` does
    for file in ("evil.py", "runs/evil/payload.py", "experiments/evil.py", "runs/experiments/evil.py"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(CODE.format(trace=str(trace)))
    # What a test imports under these names is forgotten after it.
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_strange(name)}
    yield trace
    for name in [name for name in sys.modules if _is_strange(name)]:
        del sys.modules[name]
    sys.modules.update(before)


def _is_strange(module):
    return module.partition(".")[0] in ("evil", "runs", "experiments")


NAMES = [
    *("evil", "evil.py", "runs.evil.payload", "experiments.evil", "experiments..evil", "./evil.py"),
    *("experiments.../../x", "experiments/evil", "runs.experiments.evil", "os", "antigravity", "a.b.c"),
    *(
        "experiments",
        "dl.cli.commands",
        "experiments.mlp_342.x",
        "",
        ".",
        "\x00",
        "experiments.\x1b[2J",
        "x" * 10_000,
    ),
    *("experiments.evil\n", "experiments.__init__", "__main__", "experiments.mlp_342 ", "../evil.py"),
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_folder_names_no_code_but_what_is_installed(trace, name, dl):
    folder = run_folder(trace.parent / "run", name)
    with pytest.raises(UserError, match="--experiment|no function `experiment`") as caught:
        rebuild(Path(folder))
    assert len(str(caught.value)) < 400
    for argv in (["predict", folder, "image.png"], ["robustness", folder], ["export", folder]):
        (trace.parent / "image.png").touch()
        status, _, err = dl(*argv)
        assert (status, err.count("\n"), "Traceback" in err) == (2, 1, False)
        assert "\x1b" not in err
    assert dl("report", folder)[0] == 0
    assert not trace.exists()


@pytest.mark.parametrize("name", [7, None, ["experiments.mlp_342"], {"a": 1}])
def test_a_name_that_is_no_text_is_none(tmp_path, name):
    with pytest.raises(UserError, match="--experiment"):
        rebuild(Path(run_folder(tmp_path / "run", name)))


def test_the_line_says_what_to_type(trace):
    for name, argument in (("runs.evil.payload", "runs.evil.payload"), ("evil", "evil.py")):
        folder = run_folder(trace.parent / "run", name)
        with pytest.raises(UserError, match=f"if you trust its code, add --experiment {argument}$"):
            rebuild(Path(folder))
        with pytest.raises(UserError, match="must return an Experiment"):  # its code was run
            rebuild(Path(folder), argument)
        assert trace.exists()
        trace.unlink()


def test_installed_code_wins_over_the_working_directory(trace):
    (trace.parent / "experiments/mlp_342.py").write_text(CODE.format(trace=str(trace)))
    rebuilt = rebuild(Path(run_folder(trace.parent / "run")))
    assert rebuilt.experiment.num_steps
    assert not trace.exists()


def test_another_package_that_is_loaded_is_not_taken_for_the_installed_one(trace):
    (trace.parent / "experiments/__init__.py").touch()
    with pytest.raises(UserError, match="returned 'None'|must return"):
        rebuild(Path(run_folder(trace.parent / "run", "experiments.evil")), "experiments.evil")
    trace.unlink()
    with pytest.raises(UserError, match="another package experiments is imported already"):
        find_installed(NAME, "hint")
    assert not trace.exists()


@pytest.mark.slow
def test_python_m_dl_runs_no_code_of_a_folder(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "evil.py").write_text(CODE.format(trace=str(trace)))
    folder = run_folder(tmp_path / "run", "evil")
    done = subprocess.run(
        [sys.executable, "-m", "dl", "report", folder, "--out", "out.html"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "add --experiment evil.py" in (tmp_path / "out.html").read_text()
    assert not trace.exists()


@pytest.mark.parametrize("file", ["test.py", "jax.py", "os.py", "json.py"])
def test_a_file_hides_no_module_of_its_name(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).write_text("def experiment():\n    return 'mine'\n")
    before = sys.modules.get(file.removesuffix(".py"))
    for path in (file, str(tmp_path / file), f"../{tmp_path.name}/{file}"):
        assert find_experiment(path)() == "mine"
    assert sys.modules.get(file.removesuffix(".py")) is before


HOSTILE = [
    {"seed": "x"},
    {"seed": []},
    {"seed": True},
    {"seed": 1.5},
    {"seed": -1},
    {"seed": 2**32},
    {"seed": int("9" * 400)},
    {"seed": None},
    {"num_seeds": "x"},
    {"num_seeds": 0},
    {"num_seeds": None},
    {"no_such": 1},
    {"__class__": 1},
    {"\x1b[2J": 1},
    {"learning_rate": "__import__('os').system('id')"},
    {"learning_rate": int("9" * 400)},
    {"learning_rate": {"a": [1]}},
]


@pytest.mark.parametrize("options", HOSTILE, ids=range(len(HOSTILE)))
def test_options_of_another_type_are_one_line(tmp_path, dl, options):
    folder = run_folder(tmp_path / "run", options=options)
    (tmp_path / "image.png").touch()
    status, _, err = dl("predict", folder, str(tmp_path / "image.png"))
    assert (status, err.count("\n"), "\x1b" in err) == (2, 1, False)


@pytest.mark.parametrize(
    "content", [b"", b"[", b"[]", b"null", b"7", b"\xff\xfe", b'{"options": []}', b"9" * 5000]
)
def test_a_record_that_is_none_is_one_line(tmp_path, dl, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_bytes(content)
    (tmp_path / "image.png").touch()
    for argv in (
        ["report", "run"],
        ["predict", "run", "image.png"],
        ["robustness", "run"],
        ["export", "run"],
        ["compare", "run", "run"],
    ):
        status, _, err = dl(
            *(str(tmp_path / word) if word in ("run", "image.png") else word for word in argv)
        )
        assert (status, err.count("\n")) == (2, 1), argv


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(here)


def make_device(path):
    path.symlink_to("/dev/zero")


def make_folder(path):
    path.mkdir()


def make_loop(path):
    path.symlink_to(path.name)


def make_nested(path):
    path.write_text("[" * 500_000)


@pytest.mark.parametrize("make", [make_pipe, make_socket, make_device, make_folder, make_loop, make_nested])
@pytest.mark.parametrize(
    "name", ["run.json", "result.json", "robustness.json", "metrics.jsonl", "predictions.npz"]
)
def test_what_is_no_regular_file_is_neither_waited_for_nor_read(tmp_path, dl, name, make):
    folder = run_folder(tmp_path / "run")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    make(tmp_path / "run" / name)
    start = time.monotonic()
    for argv in (["report", folder], ["compare", folder, folder]):
        status, _, err = dl(*argv)
        assert status in (0, 2)
        assert err.count("\n") == (status == 2)
    assert time.monotonic() - start < 20


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    file = tmp_path / "run.json"
    with file.open("wb") as opened:
        opened.truncate(2**40)  # sparse
    for read in (lambda: read_json(file), lambda: read_regular(file, 10)):
        with pytest.raises(UserError, match="1,099,511,627,776 bytes, more than"):
            read()


def test_nesting_is_bounded(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("[" * 60 + "]" * 60)
    assert isinstance(read_json(file), list)
    for depth in (70, 900, 100_000):
        file.write_text('{"a":[' * depth + "]}" * depth)
        with pytest.raises(UserError, match="nested more than 64 deep"):
            read_json(file)


def write_the_report(path):
    write_report(Path(run_folder(path.parent / "run")), path, None)


def write_tensors(path):
    save_safetensors(path, {"a": np.ones(2)})


WRITERS = [lambda path: write_json(path, {}), write_the_report, write_tensors]


@pytest.mark.parametrize("write", WRITERS, ids=["json", "report", "safetensors"])
def test_a_planted_link_is_not_followed(tmp_path, write):
    victim, target = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    target.symlink_to(victim)
    for name in (f".out.{os.getpid()}", f"out.{os.getpid()}.partial", ".out", "out.tmp", ".out.tmp"):
        (tmp_path / name).symlink_to(victim)
    write(target)
    assert victim.read_text() == "precious"
    assert not target.is_symlink()
    assert target.stat().st_size > 0


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "a"
    replace_text(path, "old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_file(path, fail)
    assert (path.read_text(), [p.name for p in tmp_path.iterdir()]) == ("old", ["a"])
    mask = os.umask(0o077)
    try:
        replace_text(path, "half a pair: \ud800")
    finally:
        os.umask(mask)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"half a pair: \\ud800", 0o600)


def test_only_own_leftovers_are_removed(tmp_path):
    program = (
        "import os, pathlib, signal\nfrom dl.system.files import replace_file\n"
        f"path = pathlib.Path({str(tmp_path / ('n' * 250))!r})\n"
        "replace_file(path, lambda file: os.kill(os.getpid(), signal.SIGKILL))"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    (tmp_path / ".mine.tmp").touch()
    assert sorted(map(is_leftover, tmp_path.iterdir())) == [False, True]
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]


@pytest.mark.parametrize("kind", ["folder", "link", "device", "pipe", "missing"])
@pytest.mark.parametrize(
    "argv",
    [
        ["report", "RUN", "--out"],
        ["predict", "RUN", "RUN", "--csv"],
        ["compare", "RUN", "RUN", "--markdown"],
        ["compare", "RUN", "RUN", "--latex"],
        ["robustness", "RUN", "--preview"],
        ["lr-find", "mlp_342", "--plot"],
        ["augment-preview", "mnist_mlp", "--out"],
    ],
    ids=lambda argv: argv[0] + argv[-1],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, dl, argv, kind):
    path = tmp_path / "out"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "victim")
    elif kind == "pipe":
        os.mkfifo(path)
    path = {"device": Path("/dev/full"), "missing": tmp_path / "no/out"}.get(kind, path)
    folder = run_folder(tmp_path / "run")
    status, out, err = dl(*(folder if word == "RUN" else word for word in argv), str(path))
    assert (status, err.count("\n"), out) == (2, 1, "")
    assert f"{argv[-1]} {path} cannot be written" in err


def tensors_file(path, header, data=b""):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + data)
    return path


def tensor(shape, end, start=0, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": tensor([1], 4), "a/b": tensor([1], 8, 4)}, 8),
        ({"a/b/c": tensor([1], 4), "a": tensor([1], 8, 4)}, 8),
        ({"a": tensor([10**12], 4)}, 4),
        ({"a": tensor([0, 2**62], 0)}, 0),
        ({"a": tensor([0, 2**63 - 1, 2**40], 0)}, 0),
        ({"a": tensor([1] * 100, 4)}, 4),
        ({"a": tensor([4], 4, dtype="F8_E4M3")}, 4),
        ({"a": tensor([1], 1, dtype="Q7")}, 1),
        (b"[" * 100_000, 0),
    ],
    ids=range(9),
)
def test_tensors_of_a_hostile_header_are_one_line(tmp_path, header, size):
    pytest.importorskip("safetensors")
    file = tensors_file(tmp_path / "x.safetensors", header, bytes(size))
    with pytest.raises(UserError) as caught:
        load_safetensors(file)
    assert "\n" not in str(caught.value)


def test_an_index_of_tensors_names_only_files_beside_it(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "model").mkdir()
    save_safetensors(tmp_path / "x.safetensors", {"a": np.ones(2)})
    index = {"weight_map": {"a": "../x.safetensors"}}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="is not in its folder"):
        list(read_tensors(tmp_path / "model"))
