"""Learning curves: the fit finds the law behind the errors, and the runs see the right parts."""

import json

import numpy as np
import pytest
from scipy import optimize
from test_sweep import EXPERIMENT

from dl.cli import main
from dl.curve_plan import part_of
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.power_law import PowerLaw, bootstrap, fit

WIDTHS = '''
"""A perceptron on the embedded digits; the bias of its last layer stays as it is."""
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from dl import Experiment, PositiveInt, Seed, losses, optimizers
from dl.data import ArraySource, ArraySplits
from dl.models.mlp import MLP


def experiment(
    hidden: PositiveInt = 5, pixels: PositiveInt = 64, notes: Path = Path("notes.txt"), seed: Seed = 0
) -> Experiment:
    digits = load_digits()

    def source(start, stop):
        pixels_BD = np.float32(digits.data[start:stop, :pixels] / 16)
        return ArraySource({"features": pixels_BD, "label": np.int32(digits.target[start:stop])})

    model = MLP(hidden=(hidden,), num_classes=10)
    return Experiment(
        data=ArraySplits("digits", train=source(0, 96), evaluations={"test": source(96, 196)}),
        model=model,
        input_name="features",
        loss_fn=losses.classification(model, input_name="features"),
        frozen=("Dense_1/bias",),
        tx=optimizers.sgd(0.5),
        num_steps=6,
        batch_size=48,
        eval_batch_size=100,
        seed=seed,
    )
'''
SIZES = np.array([100, 200, 500, 1000, 5000, 20000])


@pytest.mark.parametrize(
    "law", [PowerLaw(2.0, 0.5, 0.01), PowerLaw(30.0, 1.2, 0.0), PowerLaw(0.9, 0.11, 0.2)]
)
def test_the_fit_finds_the_law(law):
    found = fit(SIZES, law(SIZES))
    np.testing.assert_allclose(found(SIZES), law(SIZES), rtol=1e-6)
    np.testing.assert_allclose(found.exponent, law.exponent, rtol=1e-3)


def test_the_fit_is_that_of_scipy_where_there_is_noise():
    law = PowerLaw(2.0, 0.6, 0.05)
    errors = law(SIZES) + np.random.default_rng(0).normal(0, 0.003, len(SIZES))

    def curve(n, scale, exponent, floor):
        return scale * n**-exponent + floor

    theirs, _ = optimize.curve_fit(curve, SIZES, errors, law, bounds=(0, [100, 4, 1]))
    np.testing.assert_allclose(fit(SIZES, errors), theirs, rtol=1e-3)


def test_the_bootstrap_covers_the_law():
    law, random = PowerLaw(2.0, 0.5, 0.02), np.random.default_rng(0)
    is_inside = []
    for _ in range(10):
        errors_SR = law(SIZES)[:, None] + random.normal(0, 0.002, (len(SIZES), 6))
        low, high = np.quantile([found(1000) for found in bootstrap(SIZES, errors_SR, 60)], (0.025, 0.975))
        is_inside.append(low < law(1000) < high)
    assert sum(is_inside) >= 7
    with pytest.raises(UserError, match="one run of each size"):
        bootstrap(SIZES, np.ones((6, 1)))
    with pytest.raises(UserError, match="2 sizes do not determine a power law"):
        fit([10, 10, 20], [0.3, 0.2, 0.1])


def test_a_smaller_part_lies_in_a_larger_one():
    source = ArraySource({"label": np.arange(40, dtype=np.int32)})
    data = ArraySplits("d", source, {"test": source})
    parts = [set(part_of(data, fraction).train.arrays["label"].tolist()) for fraction in (0.1, 0.5, 1)]
    assert [len(part) for part in parts] == [4, 20, 40]
    assert parts[0] < parts[1] < parts[2]
    part = part_of(data, 0.5)
    assert part.evaluations == data.evaluations
    assert part.identity.sizes == {"train": 20, "test": 40}
    assert part.identity.checksum == data.identity.checksum


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "plane.py"
    file.write_text(EXPERIMENT.replace('"test": Unreadable()', '"test": source(50, 2)'))
    return str(file)


def test_the_command_trains_fits_and_draws(path, tmp_path, capsys):
    options = ["--fractions", "0.25,0.5,1", "--num-seeds", "2", "--mesh", "data=1"]
    with pytest.raises(SystemExit) as exit_:
        main(["learning-curve", path, *options, "--workdir", str(tmp_path / "c")])
    assert exit_.value.code == 0
    assert "test_accuracy_with_twice_the_data=" in capsys.readouterr().out
    curve = json.loads((tmp_path / "c" / "curve.json").read_text())
    assert curve["sizes"] == [8, 16, 32]
    for name, errors in zip(("0.25", "0.5", "1"), curve["errors"], strict=True):
        result = json.loads((tmp_path / "c" / f"fraction-{name}" / "result.json").read_text())
        assert errors == [1 - member["metrics"]["test"]["accuracy"] for member in result["members"]]
        assert result["steps"] == 2
    assert (tmp_path / "c" / "curve.png").stat().st_size > 1000


@pytest.fixture
def widths(tmp_path):
    file = tmp_path / "widths.py"
    file.write_text(WIDTHS)
    return str(file)


def test_the_curve_over_parameters_trains_each_size_once(widths, tmp_path, capsys):
    argv = [
        "learning-curve",
        widths,
        "--num-seeds",
        "2",
        "--mesh",
        "data=1",
        "--workdir",
        str(tmp_path / "c"),
    ]
    for _ in range(2):
        with pytest.raises(SystemExit) as exit_:
            main([*argv, "--over", "hidden=16,4,8"])
        assert exit_.value.code == 0
    curve = json.loads((tmp_path / "c" / "curve.json").read_text())
    assert (curve["varied"], curve["values"], curve["unit"]) == ("hidden", ["4", "8", "16"], "parameters")
    assert curve["options"] == {"pixels": 64, "notes": "notes.txt", "seed": 0}
    # Of 64 inputs, the hidden units and 10 classes; the bias of the classes is frozen.
    assert curve["sizes"] == [64 * hidden + hidden + hidden * 10 for hidden in (4, 8, 16)]
    for name, size, errors in zip(curve["values"], curve["sizes"], curve["errors"], strict=True):
        run = tmp_path / "c" / f"hidden-{name}"
        result = json.loads((run / "result.json").read_text())
        assert errors == [1 - member["metrics"]["test"]["accuracy"] for member in result["members"]]
        assert result["num_parameters"] - result["num_frozen_parameters"] == size
        record = json.loads((run / "run.json").read_text())
        assert record["options"]["hidden"] == int(name)
        assert len(record["starts"]) == 1
    law = curve["law"]
    accuracy = 1 - law["scale"] * 2400 ** -law["exponent"] - law["floor"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"test_accuracy_with_twice_the_parameters={accuracy:.4f} ci95=")
    assert " parameters=2400 " in last
    assert (tmp_path / "c" / "curve.png").stat().st_size > 1000
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert "holds a curve over hidden, not fraction; use another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["hidden=4,8"], "--over 'hidden=4,8' must have three or more values"),
        (["hidden=4:16"], "'hidden=4:16' is a range; write behind it how many values, as in hidden=4:16:5"),
        (["hidden"], "'hidden' is no option with values"),
        (["hiden=4,8,16"], "there is no option --hiden; did you mean --hidden?"),
        (["hidden=4,8,x"], "--hidden 'x' is not understood; it must be a whole number"),
        (["seed=1,2,3"], "seed=1 and seed=2 both train 375 parameters; --over takes an option that changes"),
        (["pixels=64,16,32"], "pixels=16 and pixels=32 have other data; --over takes an option that changes"),
        (["hidden=4,8,16", "--hidden", "4"], "hidden takes the values of --over and is given another too"),
        (["hidden=4,8,16", "--fractions", "0.1,0.5,1"], "--fractions and --over ask for two curves"),
    ],
)
def test_mistakes_in_over_are_one_line(widths, capsys, argv, message):
    with pytest.raises(SystemExit) as exit_:
        main(["learning-curve", widths, "--over", *argv])
    error = capsys.readouterr().err
    assert (exit_.value.code, message in error, error.count("\n")) == (2, True, 1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "learning-curve needs an experiment first"),
        (["EXP", "--fractions", "1,2"], "must be three or more different numbers"),
        (["EXP", "--fractions", "0.1,0.2,x"], "is not understood; write numbers with commas between"),
        (["EXP", "--num-seeds", "1"], "--num-seeds 1 tells nothing of the spread"),
    ],
)
def test_mistakes_are_one_line(path, capsys, argv, message):
    with pytest.raises(SystemExit) as exit_:
        main(["learning-curve", *(path if word == "EXP" else word for word in argv)])
    error = capsys.readouterr().err
    assert (exit_.value.code, message in error, error.count("\n")) == (2, True, 1)
