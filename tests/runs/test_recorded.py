"""Two runs that an older version left still open: they are reported, compared, used and never mixed up.

`recorded/` holds what `python -m experiments.mnist_mlp --dataset digits --hidden 8 --num-epochs 5
--learning-rate 0.02 --seed S --no-report` wrote with commit d2dbd37, except for the name of the machine.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax
from sklearn.datasets import load_digits

import dl as library

RECORDED = Path(__file__).parent / "recorded"
MEASURED = {0: 0.7333, 1: 0.7111}  # test accuracy as it was printed


@pytest.fixture
def runs(tmp_path):
    shutil.copytree(RECORDED, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.mark.filterwarnings("ignore:the code of experiments.mnist_mlp has changed since this run:UserWarning")
@pytest.mark.parametrize("seed", [0, 1])
def test_its_variables_predict_what_it_measured(runs, seed):
    run = library.load_run(runs / f"seed{seed}")
    assert run.metrics["test"]["accuracy"] == pytest.approx(MEASURED[seed], abs=5e-5)
    assert [row["kind"] for row in run.history].count("validation") == 5
    with np.load(runs / f"seed{seed}" / "predictions.npz") as kept:
        rows, expected = kept["index"], kept["log_probabilities"]
    test = run.experiment.data.evaluations["test"][rows]
    predicted = log_softmax(run.predict(test["image"]), axis=1)
    np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-4)


def test_it_is_reported(runs, dl):
    status, _, err = dl("report", str(runs / "seed0"))
    assert (status, err) == (0, "")
    page = (runs / "seed0" / "report.html").read_text()
    assert "73.33" in page
    assert "learning_rate" in page


def test_two_of_them_are_compared(runs, dl):
    status, out, err = dl("compare", str(runs / "seed0"), str(runs / "seed1"))
    assert (status, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("test accuracy:")]
    assert line.startswith("test accuracy: no difference")
    difference = float(re.search(r"by ([+-][0-9.]+)", line)[1])
    assert difference == pytest.approx(MEASURED[1] - MEASURED[0], abs=1e-4)


def test_it_reads_new_images(runs, dl, tmp_path):
    digits = load_digits()
    Image.fromarray((digits.images[0] * 15.9375).astype(np.uint8)).save(tmp_path / "zero.png")
    status, out, err = dl("predict", str(runs / "seed0"), str(tmp_path / "zero.png"), "--top", "1")
    assert status == 0
    assert "warning: the code of experiments.mnist_mlp has changed since this run" in err
    with pytest.warns(UserWarning, match="has changed since this run"):
        run = library.load_run(runs / "seed0")
    image = np.asarray(Image.open(tmp_path / "zero.png"))[None, ..., None]
    assert out.split()[1] == str(run.predict(image).argmax())


def test_another_experiment_does_not_get_its_folder(runs, dl):
    from dl.data import image_classification
    from dl.models.mlp import MLP

    model = MLP(hidden=(8, 4), num_classes=10)
    data = image_classification("digits")
    experiment = library.Experiment(
        data=data,
        task=library.task.classification(model),
        tx=library.optimizers.adam(0.02),
        num_steps=55,
        batch_size=128,
    )
    with pytest.raises(library.UserError, match="holds another run"):
        library.train(experiment, runs / "seed0")
