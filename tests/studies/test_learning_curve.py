"""Learning curves: the fit finds the law behind the errors, and the runs see the right parts."""

import json

import numpy as np
import pytest
from scipy import optimize, stats

from dl.cli.commands import main
from dl.data import ArraySource, ArraySplits
from dl.data.part import part_of, part_size
from dl.errors import UserError
from dl.runs.console import Console
from dl.runs.find import find_experiment
from dl.studies.learning_curve import learning_curve
from dl.studies.power_law import PowerLaw, fit, forecast, lack_of_fit, objection
from tests.helpers import PLANE, replace_training

WIDTHS = '''
"""A perceptron on the embedded digits; the bias of its last layer stays as it is."""
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from dl import Experiment, PositiveInt, Seed, optimizers, task
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
        task=task.classification(model, input_name="features"),
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


@pytest.mark.slow
@pytest.mark.parametrize("law", [PowerLaw(5.0, 0.5, 0.02), PowerLaw(2.0, 0.35, 0.0)])
@pytest.mark.parametrize("num_runs", [3, 5])
def test_the_interval_of_a_forecast_covers_the_law(law, num_runs):
    random, sizes = np.random.default_rng(0), np.array([72, 144, 287, 718, 1437])
    num_covered, num_rejected, num_repeats = 0, 0, 250
    for _ in range(num_repeats):
        errors_SR = law(sizes)[:, None] + random.normal(0, 0.01, (len(sizes), num_runs))
        estimate, low, high = forecast(sizes, errors_SR, 3000)
        assert low <= estimate <= high
        num_covered += low <= law(3000) <= high
        num_rejected += lack_of_fit(fit(sizes, errors_SR.mean(1)), sizes, errors_SR).p_value < 0.05
    assert stats.binomtest(num_covered, num_repeats, 0.95).pvalue > 0.01
    assert stats.binomtest(num_rejected, num_repeats, 0.06, alternative="greater").pvalue > 0.01


def test_the_interval_does_not_depend_on_the_units():
    errors_SR = PowerLaw(2.0, 0.5, 0.05)(SIZES)[:, None] + np.random.default_rng(0).normal(0, 0.01, (6, 3))
    once, scaled = forecast(SIZES, errors_SR, 5e4), forecast(SIZES * 1e3, 1e3 * errors_SR, 5e7)
    np.testing.assert_allclose(scaled, 1e3 * np.array(once), rtol=1e-6)


def test_the_interval_is_that_of_the_delta_method_where_the_scatter_is_small():
    law, random = PowerLaw(2.0, 0.5, 0.05), np.random.default_rng(0)
    errors_SR = law(SIZES)[:, None] + random.normal(0, 1e-5, (6, 3))
    _, low, high = forecast(SIZES, errors_SR, 5e4)
    # f(x) = c + a n^-b: how it changes with a, b and c, at the sizes and where the forecast is.
    at = np.append(SIZES, 5e4)[:, None]
    power = at**-law.exponent
    gradients = np.hstack([power, -law.scale * np.log(at) * power, np.ones_like(at)])
    influences = gradients[-1] @ np.linalg.pinv(gradients[:-1])
    parts = influences**2 * errors_SR.var(1, ddof=1) / 3
    freedom = parts.sum() ** 2 / (parts**2 / 2).sum()
    half = stats.t.ppf(0.975, freedom) * np.sqrt(parts.sum())
    np.testing.assert_allclose((high - low) / 2, half, rtol=0.02)


def test_too_few_sizes_or_runs_are_one_line():
    for use in (forecast, lambda *args: lack_of_fit(PowerLaw(1.0, 1.0, 0.0), *args)):
        with pytest.raises(UserError, match="one run of each size"):
            use(SIZES, np.ones((6, 1)), *([1e4] if use is forecast else []))
    with pytest.raises(UserError, match="2 sizes do not determine a power law"):
        fit([10, 10, 20], [0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    ("means", "message"),
    [
        # Errors of runs whose last batches held one example: the whole data measured 0.201.
        ([0.43, 0.22, 0.33, 0.20, 0.201], "lie farther from every power law than the runs scatter"),
        ([0.30, 0.30, 0.10, 0.10, 0.10], "lie farther from every power law than the runs scatter"),
        ([0.20, 0.20, 0.20, 0.20, 0.20], "the error does not fall"),
        ([0.10, 0.15, 0.20, 0.25, 0.30], "lie farther from every power law than the runs scatter"),
        ([0.40, 0.304, 0.304, 0.304, 0.2985], "has a larger error at twice the largest size"),
    ],
)
def test_a_law_that_does_not_fit_is_objected_to(means, message):
    sizes = [72, 144, 287, 718, 1437]
    errors_SR = np.array(means)[:, None] + 0.01 * np.array([-1.0, 0.0, 1.0])
    assert message in objection(fit(sizes, means), sizes, errors_SR)


def test_a_law_that_fits_is_not_objected_to():
    law, sizes = PowerLaw(5.0, 0.5, 0.02), np.array([72, 144, 287, 718, 1437])
    for spread in (0.0, 0.01):
        errors_SR = law(sizes)[:, None] + spread * np.array([-1.0, 0.0, 1.0])
        assert objection(fit(sizes, errors_SR.mean(1)), sizes, errors_SR) is None


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


def test_a_part_is_whole_batches_or_the_batch():
    sizes = [part_size(1437, fraction, 128) for fraction in (0.05, 0.0898, 0.1, 0.2, 0.5, 0.99, 1)]
    assert sizes == [72, 128, 128, 256, 768, 1408, 1437]
    for size in sizes[:-1]:
        assert size <= 128 or size % 128 == 0
    assert part_size(1437, 0.05) == 72


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "plane.py"
    file.write_text(PLANE.replace('"test": Unreadable()', '"test": source(50, 2)'))
    return str(file)


@pytest.mark.slow
def test_the_command_trains_fits_and_draws(path, tmp_path, capsys):
    options = ["--fractions", "0.25,0.5,1", "--num-seeds", "2", "--mesh", "data=1"]
    with pytest.raises(SystemExit) as exit_:
        main(["learning-curve", path, *options, "--workdir", str(tmp_path / "c")])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    curve = json.loads((tmp_path / "c" / "curve.json").read_text())
    assert curve["sizes"] == [8, 16, 32]
    for name, errors in zip(("0.25", "0.5", "1"), curve["errors"], strict=True):
        result = json.loads((tmp_path / "c" / f"fraction-{name}" / "result.json").read_text())
        assert errors == [1 - member["metrics"]["test"]["accuracy"] for member in result["members"]]
        assert result["steps"] == 2
    assert (tmp_path / "c" / "curve.png").stat().st_size > 1000
    assert (curve["objection"] is None) == ("test_accuracy_with_twice_the_data=" in printed)
    assert curve["objection"] is None or f"no forecast: {curve['objection']}" in printed


def test_it_is_a_function_that_returns_the_curve(path, tmp_path, mesh1):
    experiment_fn, fractions, folder = find_experiment(path), [0.25, 0.5, 1], tmp_path / "c"
    how = {"folder": folder, "mesh": mesh1, "console": Console(is_quiet=True)}
    found = learning_curve(experiment_fn, {"decay": 0.1}, fractions=fractions, num_seeds=2, **how)
    record = json.loads((folder / "curve.json").read_text())
    assert (found.measured.sizes, found.objection) == (record["sizes"], record["objection"])
    np.testing.assert_array_equal(found.measured.errors, record["errors"])
    assert record["options"]["decay"] == 0.1
    assert len(found.table.rows) == 3
    for arguments, message in (
        ({"fractions": fractions, "over": {"seed": [1, 2, 3]}}, "were both given"),
        ({"over": {"seed": [1, 2, 3]}, "options": {"seed": 1}}, "seed takes the values of over and is given"),
        ({"over": {"seed": [1, 2, 3], "decay": [1.0]}}, "over must name one option, not seed, decay"),
        ({"over": {"sed": [1, 2, 3]}}, "'sed' is not an option of plane"),
    ):
        with pytest.raises(UserError, match=message):
            learning_curve(experiment_fn, **arguments)


@pytest.fixture
def widths(tmp_path):
    file = tmp_path / "widths.py"
    file.write_text(WIDTHS)
    return str(file)


@pytest.mark.slow
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
        main([*argv, "--fractions", "0.25,0.5,1"])
    assert exit_.value.code == 2
    assert (
        'holds another learning curve (varied: "hidden" there, "fraction" here; ' in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["hidden=4,8"], "over hidden has 2 values; a power law needs at least three"),
        (["hidden=4:16"], "--over 'hidden=4:16' is a range; add the number of values, as in hidden=4:16:5"),
        (["hidden"], "'hidden' does not list values"),
        (["hiden=4,8,16"], "there is no option --hiden; did you mean --hidden?"),
        (["hidden=4,8,x"], "--hidden 'x' is not understood; it must be a whole number"),
        (["seed=1,2,3"], "seed=1 and seed=2 both train 375 parameters; over takes an option that changes"),
        (["pixels=64,16,32"], "pixels=16 and pixels=32 have other data; over takes an option that changes"),
        (["hidden=4,8,16", "--hidden", "4"], "hidden takes the values of --over and is given another too"),
        (["hidden=4,8,16", "--fractions", "0.1,0.5,1"], "--fractions and --over were both given"),
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
        ([], "learning-curve needs EXPERIMENT"),
        (["EXP", "--fractions", "1,2"], "must be three or more different numbers"),
        (["EXP", "--fractions", "0.1,0.2,x"], "is not understood; write numbers with commas between"),
        (["EXP", "--num-seeds", "1"], "num_seeds=1 does not show the spread of the runs"),
    ],
)
def test_mistakes_are_one_line(path, capsys, argv, message):
    with pytest.raises(SystemExit) as exit_:
        main(["learning-curve", *(path if word == "EXP" else word for word in argv)])
    error = capsys.readouterr().err
    assert (exit_.value.code, message in error, error.count("\n")) == (2, True, 1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--fractions", "0.3,0.31,1"], "the fractions 0.3 and 0.31 of 32 examples are both 10"),
        (
            ["--fractions", "0.5,0.6,1"],
            "0.5 and 0.6 of 32 examples are both 16, in whole batches",
        ),
        (["--fractions", "0.001,0.5,1"], "the fraction 0.001 of 32 examples is 0; choose larger fractions"),
        (["--fractions", "0.03,0.5,1"], "the fraction 0.03 of 32 examples is 1, fewer than the 2 classes"),
        (["--fractions", "0.5,0.5,0.7,1"], "must be three or more different numbers"),
        (["--fractions", "0.5,nan,1"], "must be three or more different numbers"),
        (["--metric", "f1"], "metric='f1' is not measured; choose one of"),
        (["--metric", "loss", "--mode", "auto"], "--mode"),
    ],
)
def test_arguments_are_judged_before_the_work(path, tmp_path, dl, argv, message):
    fractions = [] if "--fractions" in argv else ["--fractions", "0.25,0.5,1"]
    status, _, err = dl("learning-curve", path, *argv, *fractions, "--workdir", str(tmp_path / "c"))
    assert (status, err.count("\n"), (tmp_path / "c").exists()) == (2, 1, False)
    assert message in err


REGRESSION = '''
"""A line through points, by its mean squared error; there is no class."""
import jax.numpy as jnp
import numpy as np

from dl import Experiment, PositiveInt, Seed, optimizers
from dl.data import ArraySource, ArraySplits
from dl.metrics import Mean
from dl.task import Task
from dl.types import Aux

POINTS = np.random.default_rng(0).normal(size=96).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=96).astype(np.float32)


def source(start, stop):
    return ArraySource({"image": POINTS[start:stop], "target": 2 * POINTS[start:stop] + NOISE[start:stop]})


def loss_fn(params, model_state, batch, key):
    mse_B = (params["slope"] * batch["image"] - batch["target"]) ** 2
    loss = Mean.of(mse_B, batch["mask"])
    fit = Mean.of(1 - mse_B, batch["mask"])
    return loss, Aux(model_state, {"loss": loss, "mse": loss, "fit": fit})


def experiment(num_steps: PositiveInt = 3, seed: Seed = 0) -> Experiment:
    """Trains."""
    return Experiment(
        data=ArraySplits("points", source(0, 64), {"validation": source(64, 96)}),
        task=Task(lambda key, batch: {"params": {"slope": jnp.zeros(())}}, loss_fn),
        preprocess=None,
        tx=optimizers.sgd(0.1),
        num_steps=num_steps,
        batch_size=8,
        seed=seed,
    )
'''


@pytest.fixture
def regression(tmp_path):
    file = tmp_path / "points.py"
    file.write_text(REGRESSION)
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "metric", "label"),
    [
        ([], "loss", "validation loss"),
        (["--metric", "mse", "--mode", "min"], "mse", "validation mse"),
        (["--metric", "fit", "--mode", "max"], "fit", "validation 1 - fit"),
    ],
)
def test_a_curve_of_any_metric(regression, tmp_path, dl, words, metric, label):
    options = ["--fractions", "0.25,0.5,1", "--num-seeds", "2", "--mesh", "data=1"]
    status, out, err = dl("learning-curve", regression, *options, *words, "--workdir", str(tmp_path / "c"))
    assert (status, err) == (0, "")
    curve = json.loads((tmp_path / "c" / "curve.json").read_text())
    assert (curve["split"], curve["metric"], curve["sizes"]) == ("validation", metric, [16, 32, 64])
    result = json.loads((tmp_path / "c" / "fraction-1" / "result.json").read_text())
    values = [member["metrics"]["validation"][metric] for member in result["members"]]
    assert curve["errors"][-1] == [1 - value if metric == "fit" else value for value in values]
    assert f"validation {metric} by training examples" in out
    assert f"{label} = " in out or "no forecast: " in out
    assert "accuracy" not in out


def test_a_metric_without_a_direction_asks_for_it(regression, dl):
    status, _, err = dl("learning-curve", regression, "--metric", "mse", "--fractions", "0.25,0.5,1")
    assert (status, "add --mode min or --mode max" in err) == (2, True)


def test_what_was_measured_stands_though_no_law_fits(path, tmp_path, dl, monkeypatch):
    errors = {8: (0.5, 0.52), 16: (0.1, 0.12), 32: (0.3, 0.32)}

    def train(experiment, run, mesh, population, console):
        accuracies = [1 - error for error in errors[len(experiment.data.train)]]
        members = [{"metrics": {"test": {"accuracy": accuracy}}} for accuracy in accuracies]
        return {"members": members, "intervals": {"test": {"accuracy": [0.25, 0.75]}}}

    replace_training(monkeypatch, train)
    options = ["--fractions", "0.25,0.5,1", "--num-seeds", "2", "--mesh", "data=1"]
    status, out, _ = dl("learning-curve", path, *options, "--workdir", str(tmp_path / "c"))
    assert status == 0
    assert out.count("0.2500..0.7500") == 3
    assert "no forecast: the means lie farther from every power law than the runs scatter" in out
    assert "with_twice" not in out
    curve = json.loads((tmp_path / "c" / "curve.json").read_text())
    assert (curve["sizes"], curve["forecast"]) == ([8, 16, 32], None)
    np.testing.assert_allclose(curve["errors"], list(errors.values()))
    assert (tmp_path / "c" / "curve.png").stat().st_size > 1000


@pytest.mark.parametrize("accuracy", [98.5, None])
def test_percent_and_what_is_no_number_lose_nothing(path, tmp_path, dl, monkeypatch, accuracy):
    result = {
        "members": [{"metrics": {"test": {"accuracy": accuracy}}}] * 2,
        "intervals": {"test": {"accuracy": [accuracy] * 2}},
    }
    replace_training(monkeypatch, lambda *args: result)
    options = ["--fractions", "0.25,0.5,1", "--num-seeds", "2", "--mesh", "data=1"]
    status, out, _ = dl("learning-curve", path, *options, "--workdir", str(tmp_path / "c"))
    assert (status, "no forecast: test " in out) == (0, True)
    assert json.loads((tmp_path / "c" / "curve.json").read_text())["sizes"] == [8, 16, 32]


def test_a_damaged_record_of_a_curve_is_one_line(path, tmp_path, dl):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "curve.json").write_text('{"varied": "fraction", "sha256": "0"}')
    options = ["--fractions", "0.25,0.5,1", "--workdir", str(tmp_path / "c")]
    status, _, err = dl("learning-curve", path, *options)
    assert (status, "is damaged (its content does not match its digest)" in err, err.count("\n")) == (
        2,
        True,
        1,
    )
