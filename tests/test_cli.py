"""`python -m dl`: what is printed, what is written, and that a mistake is one line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dl.cli import main
from dl.experiment_commands import COMMANDS

EXPERIMENT = '''
"""A tiny experiment."""
import numpy as np

from dl import Experiment, PositiveFloat, PositiveInt, losses, optimizers
from dl.data import ArraySource, ArraySplits
from dl.data.augment import random_horizontal_flip
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
        model=model,
        loss_fn=losses.classification(model),
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
    assert all(name in out for name in COMMANDS)
    status, out, _ = dl("overfit", path, "--help")
    assert status == 0
    for text in (
        "--hidden",
        "units.",
        "--threshold",
        "the loss to fall under",
        "--data-dir",
        "the folder of",
    ):
        assert text in out
    assert "Trains on one batch" in out
    status, out, _ = dl("lr-find", "--help")
    assert status == 0
    assert "--plot" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sumary", "mnist_cnn"], "no command sumary; did you mean summary?"),
        (["zzz"], "no command zzz; there are summary, overfit"),
        (["summary"], "summary needs an experiment first"),
        (["summary", "--data-dir", "x"], "summary needs an experiment first"),
        (["summary", "mnist_cn"], "no experiment mnist_cn; did you mean mnist_cnn?"),
        (["summary", "experiments.mnist_cn"], "no experiment experiments.mnist_cn; did you mean mnist_cnn?"),
        (["summary", "nowhere.at.all"], "no experiment nowhere.at.all"),
        (["summary", "absent.py"], "no file absent.py"),
        (["summary", "dl.flops"], "dl.flops has no function `experiment`"),
        (["overfit", "PATH", "--thresold", "1"], "no option --thresold; did you mean --threshold?"),
        (["overfit", "PATH", "--steps", "0"], "--steps 0 is out of range"),
        (["overfit", "PATH", "--hidden", "x"], "--hidden 'x' is not understood; it must be a whole number"),
        (["lr-find", "PATH", "--low", "1", "--high", "0.1"], "are no range"),
        (["augment-preview", "PATH", "--no-flip"], "no augmentation"),
        (["augment-preview", "PATH", "--out", "/nowhere/sheet.png"], "/nowhere/sheet.png cannot be written"),
    ],
)
def test_mistakes_are_one_line(dl, path, argv, message):
    status, _, err = dl(*(path if word == "PATH" else word for word in argv))
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


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


def test_data_dir_reaches_the_data(dl, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", "elsewhere")
    status, _, err = dl("summary", "mnist_cnn", "--dataset", "no_such_set", "--data-dir", str(tmp_path))
    assert status == 2
    assert str(tmp_path) in err


def test_python_m_dl_works():
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "dl", "summary", "experiments/mlp_342.py"],
        cwd=root,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Dense_1" in done.stdout
