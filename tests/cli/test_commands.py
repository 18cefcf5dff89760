"""`python -m dl`: what is printed, what is written, and that a mistake is one line."""

import dataclasses
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from dl.cli.commands import COMMANDS, main
from dl.cli.exit_status import exit_status
from dl.cli.main import main as run_experiment
from dl.data import image_classification
from dl.data.tfds.folders import using_data_dir
from dl.runs.find import find_experiment

EXPERIMENT = '''
"""A tiny experiment."""
import numpy as np

from dl import Experiment, PositiveFloat, PositiveInt, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.data.images.augment import random_horizontal_flip
from dl.models.mlp import MLP


def experiment(hidden: PositiveInt = 32, learning_rate: PositiveFloat = 3e-2, flip: bool = True):
    """Trains.

    Args:
      hidden: units.
    """
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, 4, 4, 1), np.uint8)
    model = MLP(hidden=(hidden,), num_classes=3)
    return Experiment(
        data=ArraySplits(
            "noise",
            train=ArraySource({"image": images, "label": random.integers(0, 3, 12).astype(np.int32)}),
            notice="made up",
        ),
        task=task.classification(model),
        tx=optimizers.adam(learning_rate),
        augment=random_horizontal_flip() if flip else None,
        num_steps=10,
        batch_size=6,
    )
'''


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("experiments") / "tiny.py"
    file.write_text(EXPERIMENT)
    return str(file)


def test_summary(dl, path):
    status, out, _ = dl("summary", path, "--hidden", "5")
    assert status == 0
    for text in ("Dense_0", "1 x 4 x 4 x 1", "1 x 3", f"{16 * 5 + 5 + 5 * 3 + 3}", f"{2 * (16 * 5 + 5 * 3)}"):
        assert text in out
    assert "made up" in out


@pytest.mark.slow
def test_overfit_passes_and_fails(dl, path):
    status, out, _ = dl("overfit", path)
    assert status == 0
    first, *_, last = (line for line in out.splitlines() if line.startswith(("step", "PASS")))
    assert first.startswith("step     0  loss ")
    assert last.startswith("PASS: loss ")
    assert "on 6 examples" in last
    status, out, _ = dl("overfit", path, "--steps", "2", "--threshold", "1e-9", "--learning-rate", "1e-9")
    assert status == 1
    assert "FAIL: loss" in out
    assert [line[:4] for line in out.splitlines()[-3:]] == ["  1.", "  2.", "  3."]


@pytest.mark.slow
def test_lr_find_suggests_and_plots(dl, path, tmp_path):
    status, out, _ = dl("lr-find", path, "--low", "1e-5", "--steps", "60", "--plot", str(tmp_path / "lr.png"))
    assert status == 0
    words = out.splitlines()[-1].split()
    assert words[:3] == ["suggested", "learning", "rate"]
    assert 1e-5 < float(words[3].rstrip(",")) < 10
    assert np.asarray(Image.open(tmp_path / "lr.png")).std() > 0


def test_augment_preview_writes_a_sheet(dl, path, tmp_path):
    out_file = tmp_path / "sheet.png"
    options = ("--num-examples", "2", "--num-draws", "3", "--out", str(out_file))
    status, out, _ = dl("augment-preview", path, *options)
    assert (status, out.splitlines()[-1]) == (0, f"wrote {out_file}")
    with Image.open(out_file) as sheet:
        assert sheet.width > sheet.height > 2 * 96


def test_help_lists_commands_and_options(dl, path):
    status, out, _ = dl("--help")
    assert status == 0
    assert all(f"  {command.usage}" in out and command.help in out for command in COMMANDS.values())
    assert max(map(len, out.splitlines())) <= 82
    status, out, _ = dl("overfit", path, "--help")
    assert status == 0
    for text in (
        "--hidden",
        "units.",
        "--threshold",
        "Loss that the training must",
        "--data-dir",
        "Folder of",
    ):
        assert text in out
    assert "Trains on one batch" in out
    status, out, _ = dl("lr-find", "--help")
    assert status == 0
    assert "--plot" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "to train, type python -m experiments.NAME"),
        (["train", "mnist_cnn"], "to train, type python -m experiments.mnist_cnn"),
        (["fit", "experiments.mnist_cnn"], "to train, type python -m experiments.mnist_cnn"),
        (["mnist_cnn"], "to train, type python -m experiments.mnist_cnn"),
        (["list", "x"], "list does not take the word 'x'; write python -m dl list"),
        (["summary", "experiments"], "experiments is a folder; give the path of an experiment"),
        (["summary", "experiments/"], "experiments/ is a folder; give the path of an experiment"),
        (["summary", "README.md"], "README.md does not end in .py"),
        (["summary", "mnist_cnn\x1b[2J"], "no experiment mnist_cnn\\x1b[2J"),
        (["summary", "9" * 5000], "did you mean|there are"),
        (["report", "9" * 5000], "cannot be used as a path (File name too long)"),
        (["summary", "mnist_cnn", "--data-dir", "9" * 5000], "cannot be used as a path (File name too long)"),
        (["sumary", "mnist_cnn"], "no command sumary; did you mean summary?"),
        (["zzz"], "no command zzz; there are summary, overfit"),
        (["summary"], "summary needs EXPERIMENT (the NAME of a file experiments/NAME.py"),
        (["summary", "mlp_342", "x"], "unexpected argument|does not take the word 'x'"),
        (["report"], "report needs RUN (the folder of a run); write python -m dl report RUN"),
        (["report", "a", "b"], "report does not take the word 'b'"),
        (["predict", "a"], "predict needs INPUT (an image file, a folder of images, or a text in quotes"),
        (["summary", "--data-dir", "x"], "summary needs EXPERIMENT"),
        (["summary", "mnist_cn"], "no experiment mnist_cn; did you mean mnist_cnn?"),
        (["summary", "experiments.mnist_cn"], "no experiment experiments.mnist_cn; did you mean mnist_cnn?"),
        (["summary", "nowhere.at.all"], "no experiment nowhere.at.all"),
        (["summary", "absent.py"], "the file absent.py does not exist"),
        (["summary", "dl.flops"], "dl.flops has no function `experiment`"),
        (["overfit", "PATH", "--thresold", "1"], "no option --thresold; did you mean --threshold?"),
        (["overfit", "PATH", "--steps", "0"], "--steps 0 is out of range"),
        (["overfit", "PATH", "--hidden", "x"], "--hidden 'x' is not understood; it must be a whole number"),
        (["lr-find", "PATH", "--low", "1", "--high", "0.1"], "is not smaller than"),
        (["augment-preview", "PATH", "--no-flip"], "no augmentation"),
        (["augment-preview", "PATH", "--out", "/nowhere/sheet.png"], "/nowhere/sheet.png cannot be written"),
    ],
)
def test_mistakes_are_one_line(dl, path, argv, message):
    status, _, err = dl(*(path if word == "PATH" else word for word in argv))
    assert status == 2
    assert any(part in err for part in message.split("|"))
    assert err.count("\n") == 1
    assert len(err) < 1_100


def test_an_experiment_has_several_names(dl):
    outputs = {
        dl("summary", name)[1] for name in ("mlp_342", "experiments.mlp_342", "experiments/mlp_342.py")
    }
    assert len(outputs) == 1
    assert "26" in outputs.pop()


def test_an_error_inside_an_experiment_keeps_its_traceback(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("import a_module_that_is_missing\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        main(["summary", str(broken)])


def write(file, text=EXPERIMENT):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_file_is_found_by_any_path_to_it(dl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.py")
    write(tmp_path / "sub/net.v2.py")
    write(tmp_path / "sub/jax.py")
    names = ["mine.py", "./mine.py", "./mine", "sub/net.v2.py", "sub/net.v2", "sub/../mine.py", "sub/jax.py"]
    for name in (*names, str(tmp_path / "mine.py"), f"../{tmp_path.name}/mine.py"):
        status, out, err = dl("summary", name)
        assert (status, "Dense_0" in out, err) == (0, True, ""), name


def test_nothing_is_imported_for_a_name_that_is_none(dl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "loud.py", "raise SystemExit('it was imported')")
    (tmp_path / "loud.png").touch()
    (tmp_path / "junk.py").write_bytes(bytes(range(256)))
    os.mkfifo(tmp_path / "pipe.py")
    for name, message in (
        ("loud.png", "does not end in .py"),
        ("loud.nothing", "there is no experiment loud.nothing"),
        ("loud", "did you mean loud.py?"),
        ("junk.py", "junk.py is not text"),
        ("pipe.py", "pipe.py is not a regular file"),
    ):
        status, _, err = dl("summary", name)
        assert (status, message in err, err.count("\n")) == (2, True, 1), err


def test_every_command_has_help(dl):
    for name, command in COMMANDS.items():
        status, out, err = dl(name, "--help")
        assert (status, out.startswith(f"usage: python -m dl {name}"), err) == (0, True, ""), name
        for field in dataclasses.fields(command.options):
            assert f"--{field.name.replace('_', '-')}" in out, (name, field.name)


def test_an_option_that_a_command_inherits_has_its_help(dl):
    status, out, _ = dl("sweep", "--help")
    assert (status, "Folder of prepared data sets" in out, "Folder of the study" in out) == (0, True, True)


def test_experiments_are_listed_with_their_first_line(dl):
    status, out, _ = dl("list")
    assert status == 0
    found = {line.split()[0]: line for line in out.splitlines()}
    assert set(found) == {p.stem for p in Path("experiments").glob("*.py")} - {"__init__", "optimizer_race"}
    assert "The 3-4-2 perceptron: gradient descent" in found["mlp_342"]


@pytest.mark.slow
def test_a_renamed_experiment_refuses_with_its_new_name(dl):
    line = "error: optimizer_race is now optimizer_benchmark: python -m experiments.optimizer_benchmark\n"
    for name in ("optimizer_race", "experiments.optimizer_race", "experiments/optimizer_race.py"):
        assert dl("summary", name) == (2, "", line)
    command = [sys.executable, "-W", "error", "-m", "experiments.optimizer_race", "--dataset", "mnist"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_versions_are_told_everywhere(dl, capsys):
    line = f"dl {metadata.version('dl')}, jax {metadata.version('jax')}, Python {platform.python_version()}\n"
    for argv in (["--version"], ["-V"], ["summary", "mlp_342", "--version"]):
        assert dl(*argv)[:2] == (0, line)
    with pytest.raises(SystemExit) as exit_:
        run_experiment(find_experiment("mlp_342"), ["--version"])
    assert (exit_.value.code, capsys.readouterr().out) == (0, line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "1000000000000"], "parameters and optimizer state take"),
        (["--hidden", "9" * 30], "parameters and optimizer state take"),
        (
            ["--num-seeds", "1000000000"],
            "num_seeds=1000000000 is out of range; it must be a whole number, at least 1 and at most 65,536",
        ),
        (["--workdir", "9" * 400], "cannot be used as a path"),
    ],
)
def test_what_is_absurdly_large_is_one_line(path, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        run_experiment(find_experiment(path), ["--mesh", "data=1", *options])
    err = capsys.readouterr().err
    assert (exit_.value.code, message in err, err.count("\n")) == (2, True, 1), err


def test_memory_that_runs_out_is_one_line(capsys):
    def run(error):
        def raise_it():
            raise error

        return exit_status(raise_it)

    out_of_memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")
    for error in (MemoryError(), out_of_memory):
        assert run(error) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: out of memory; make the model or the batch smaller")
        assert err.count("\n") == 1
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run(jax.errors.JaxRuntimeError("INTERNAL: a defect"))


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_traceback():
    command = f"{shlex.quote(sys.executable)} -m dl --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, 141)
    assert done.stderr == ""


SET = """
\"\"\"A classifier of a prepared set.\"\"\"
from dl import Experiment, Seed, main, optimizers, task
from dl.data import image_classification
from dl.models.mlp import MLP


def experiment(dataset: str = "digits", learning_rate: float = 0.1, seed: Seed = 0):
    data = image_classification(dataset)
    model = MLP(hidden=(4,), num_classes=10)
    tx = optimizers.sgd(learning_rate)
    learned = task.classification(model)
    return Experiment(data=data, task=learned, tx=tx, num_steps=2, batch_size=64, seed=seed)
"""


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """The path of an experiment on digits, and a folder where they are prepared; no other folder has any."""
    write(tmp_path / "digits.py", SET)
    with using_data_dir(tmp_path / "prepared"):
        (tmp_path / "prepared").mkdir()
        assert image_classification("digits").num_classes == 10
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    return str(tmp_path / "digits.py"), str(tmp_path / "prepared")


def commands_with_data(path, prepared, folder):
    mesh = ("--mesh", "data=1")
    yield ("summary", path)
    yield ("overfit", path, "--steps", "1", "--threshold", "1000")
    yield ("sweep", path, "learning_rate=0.1,0.2", "--method", "grid", *mesh, "--workdir", f"{folder}/sweep")
    fractions = ("--fractions", "0.3,0.5,1", "--num-seeds", "2")
    yield ("learning-curve", path, *fractions, *mesh, "--workdir", f"{folder}/curve")
    yield ("report", f"{folder}/run", "--experiment", path)


@pytest.mark.slow
def test_data_dir_reaches_the_data_and_leaves_the_environment_as_it_is(dl, digits, tmp_path, capsys):
    path, prepared = digits
    before = dict(os.environ)
    words = ["--workdir", str(tmp_path / "run"), "--mesh", "data=1", "--no-report"]
    run_experiment(find_experiment(path), [*words, "--data-dir", prepared])
    assert dict(os.environ) == before
    for words in commands_with_data(path, prepared, tmp_path):
        status, _, err = dl(*words, "--data-dir", prepared)
        assert (status, dict(os.environ) == before) == (0, True), (words, err)
    status, _, err = dl("summary", path)
    assert (status, f"the data folder {tmp_path / 'elsewhere'} does not exist" in err) == (2, True)


@pytest.mark.slow
def test_python_m_dl_works():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "dl", "summary", "experiments/mlp_342.py"],
        cwd=root,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Dense_1" in done.stdout
