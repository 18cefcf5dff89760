"""A classifier on corrupted images: the errors by a direct loop, CE by hand, and the command."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dl.analysis import corruption_errors, robustness
from dl.analysis.corruption_errors import Errors, figures, relative_corruption_errors
from dl.analysis.corruption_errors import corruption_errors as ce
from dl.analysis.robustness import measure_errors, open_classifier, preview
from dl.cli.commands import main
from dl.cli.main import main as run_experiment
from dl.data import ArraySource, ArraySplits
from dl.data.images import corruptions
from dl.errors import UserError
from dl.runs.find import find_experiment
from dl.system.json_files import read_json, write_json
from dl.training.restore import restore_variables

FEW = (corruptions.gaussian_noise, corruptions.contrast, corruptions.translation)
NAMES = ("gaussian_noise", "contrast", "translation")

SOURCE = '''
"""Bright or dark, and some neither."""
from typing import Literal

import jax.numpy as jnp
import numpy as np

from dl import Experiment, Seed, main, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.models.mlp import MLP


def source_of(seed, size, kind):
    random = np.random.default_rng(seed)
    label = np.arange(size, dtype=np.int32) % 2
    images = (random.integers(0, 140, (size, 6, 5, 1)) + 60 * label[:, None, None, None]).astype(np.uint8)
    if kind == "float":
        images = images.astype(np.float32) / 255
    elif kind == "wide":
        images = images.astype(np.float32)
    elif kind == "int":
        images = images.astype(np.int32)
    elif kind == "flat":
        images = images.reshape(size, -1)
    return ArraySource({"image": images, "label": label.astype(np.float32) if kind == "target" else label})


def experiment(kind: str = "bytes", num_steps: int = 40, data_seed: int = 0, seed: Seed = 0):
    learned = task.classification(MLP(hidden=(), num_classes=2))
    if kind == "silent":
        learned = learned._replace(predict=None)
    elif kind == "picture":
        learned = learned._replace(predict=lambda variables, batch: batch["image"])
    return Experiment(
        data=ArraySplits(
            "shades",
            train=source_of(data_seed, 64, kind),
            evaluations={"test": source_of(1, 44, kind)},
            notice="made up\\nand not comparable",
        ),
        task=learned,
        tx=optimizers.adam(0.05),
        num_steps=num_steps,
        batch_size=16,
        eval_batch_size=16,
        seed=seed,
    )


if __name__ == "__main__":
    main(experiment)
'''


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """A folder with the code of an experiment, a run of it and a baseline."""
    folder = tmp_path_factory.mktemp("shades")
    path = folder / "corrupted_shades.py"
    path.write_text(SOURCE)
    experiment = find_experiment(str(path))
    for name, words in (("run", ()), ("baseline", ("--num-steps", "2", "--seed", "3"))):
        run_experiment(
            experiment, ["--workdir", str(folder / name), "--mesh", "data=1", "--no-report", *words]
        )
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Three corruptions: compiling all of them takes seconds."""
    monkeypatch.setattr(corruptions, "CORRUPTIONS", FEW)
    for module in (corruptions, corruption_errors, robustness):
        monkeypatch.setattr(module, "NAMES", NAMES)


@pytest.fixture
def subject(shades):
    return open_classifier(shades / "run", "test", str(shades / "corrupted_shades.py"))


@pytest.fixture
def command(shades, capsys):
    def run(*argv):
        with pytest.raises(SystemExit) as exit_:
            main(["robustness", *(str(word).replace("HERE", str(shades)) for word in argv)])
        printed = capsys.readouterr()
        return exit_.value.code, printed.out, printed.err

    return run


@pytest.mark.slow
def test_errors_are_those_of_a_loop_over_the_images(subject, mesh1):
    found = measure_errors(subject, mesh1, seed=5)
    dense = restore_variables(subject.experiment, subject.run, mesh1)["params"]["Dense_0"]
    kernel, bias = np.asarray(dense["kernel"]), np.asarray(dense["bias"])
    arrays = subject.source.arrays

    def is_wrong(image, label):
        return (image.ravel().astype(np.float64) / 255 @ kernel + bias).argmax() != label

    clean = [is_wrong(*pair) for pair in zip(arrays["image"], arrays["label"], strict=True)]
    np.testing.assert_array_equal(found.clean, clean)
    for which, corruption in enumerate(map(jax.jit, FEW)):
        for severity in range(1, 6):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), which), severity)
            wrong = []
            for row, (image, label) in enumerate(zip(arrays["image"], arrays["label"], strict=True)):
                drawn = corruption(jax.random.fold_in(key, row), jnp.float32(image) / 255, severity)
                wrong.append(is_wrong(np.round(np.clip(drawn, 0, 1) * 255), label))
            np.testing.assert_array_equal(found.corrupted[:, which, severity - 1], wrong)
    assert 0 < found.clean.mean() < 0.5
    assert (found.corrupted != found.clean[:, None, None]).any((0, 2)).all()


@pytest.mark.slow
def test_neither_devices_nor_batch_size_change_the_errors(subject, mesh1, mesh8):
    expected = measure_errors(subject, mesh1)
    larger = dataclasses.replace(
        subject, experiment=dataclasses.replace(subject.experiment, eval_batch_size=44)
    )
    for found in (measure_errors(subject, mesh8), measure_errors(larger, mesh1)):
        np.testing.assert_array_equal(found.clean, expected.clean)
        np.testing.assert_array_equal(found.corrupted, expected.corrupted)
    other = measure_errors(subject, mesh1, seed=1)
    np.testing.assert_array_equal(other.clean, expected.clean)
    assert (other.corrupted != expected.corrupted).any()


@pytest.mark.slow
def test_all_severities_are_one_program(subject, mesh1):
    traces = []

    def outputs(variables, batch):
        traces.append(batch["image"].dtype)
        return subject.outputs(variables, batch)

    measure_errors(dataclasses.replace(subject, outputs=outputs), mesh1)
    assert traces == [np.uint8] * 2  # its shapes, and the program


@pytest.mark.slow
def test_stored_floats_stay_floats(subject, mesh1):
    floats = {
        split: ArraySource({**source.arrays, "image": source.arrays["image"].astype(np.float32) / 255})
        for split, source in {"train": subject.experiment.data.train, "test": subject.source}.items()
    }
    data = ArraySplits("shades", train=floats["train"], evaluations={"test": floats["test"]})
    found = measure_errors(
        dataclasses.replace(subject, experiment=dataclasses.replace(subject.experiment, data=data)), mesh1
    )
    expected = measure_errors(subject, mesh1)
    np.testing.assert_array_equal(found.clean, expected.clean)
    assert (found.corrupted != expected.corrupted).mean() < 0.02  # bytes are rounded


def test_corruption_errors_by_hand():
    # Of the images as stored, then of two corruptions.
    rates, baseline = np.array([0.1, 0.2, 0.4]), np.array([0.2, 0.4, 0.3])
    np.testing.assert_allclose(ce(rates, baseline), [0.2 / 0.4, 0.4 / 0.3])
    np.testing.assert_allclose(relative_corruption_errors(rates, baseline), [0.1 / 0.2, 0.3 / 0.1])


def two_corruptions(monkeypatch):
    monkeypatch.setattr(corruption_errors, "NAMES", ("fog", "snow"))
    wrong, base = np.zeros((2, 4, 2, 5), bool)
    wrong[0, 0, :3] = wrong[1, 1] = True  # 3 of 20 and 5 of 20 cells
    base[:2, 0] = base[2, 1, :4] = True  # 10 of 20 and 4 of 20
    return Errors(np.zeros(4, bool), wrong), Errors(np.array([True, False, False, False]), base)


def test_figures_of_two_corruptions_by_hand(monkeypatch):
    errors, baseline = two_corruptions(monkeypatch)
    found = figures(errors, baseline)
    assert found["mean_corruption_error"]["value"] == pytest.approx(8 / 40)
    assert found["CE"] == pytest.approx({"fog": 3 / 10, "snow": 5 / 4})
    assert found["mCE"]["value"] == pytest.approx((3 / 10 + 5 / 4) / 2)
    relative = {"fog": (3 / 20) / (10 / 20 - 1 / 4), "snow": (5 / 20) / (4 / 20 - 1 / 4)}
    assert found["relative_CE"] == pytest.approx(relative)
    assert found["relative_mCE"]["value"] == pytest.approx(sum(relative.values()) / 2)
    assert [cell["accuracy"] for cell in found["corruptions"]["fog"]] == [0.75] * 3 + [1.0] * 2
    assert found["baseline"]["clean"]["accuracy"] == 0.75
    # Of four examples some resamples have none that the baseline has wrong.
    (line,) = (line for line in corruption_errors.lines_of(found, "it") if line.startswith("mCE"))
    assert (
        line
        == "mCE 77.5 % (no interval: in some resamples the ratio to the baseline is not defined): 100 % is it"
    )
    # Wilson: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) with n = 4
    z = 1.959964
    centre, half = 0.75 + z**2 / 8, z * (0.75 * 0.25 / 4 + z**2 / 64) ** 0.5
    bounds = [(centre - half) / (1 + z**2 / 4), (centre + half) / (1 + z**2 / 4)]
    assert found["corruptions"]["fog"][0]["interval"] == pytest.approx(bounds, abs=1e-5)


def test_intervals_of_mean_errors(monkeypatch):
    monkeypatch.setattr(corruption_errors, "NAMES", ("fog", "snow"))
    random = np.random.default_rng(0)
    wrong = random.random((400, 1, 1)) + 0.2 * random.random((400, 2, 5)) < 0.4
    errors = Errors(wrong[:, 0, 0], wrong)
    found = figures(errors, errors)
    # Of the mean over examples by the central limit theorem.
    half = 1.96 * wrong.mean((1, 2)).std(ddof=1) / 20
    low, high = found["mean_corruption_error"]["interval"]
    assert low == pytest.approx(wrong.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(wrong.mean() + half, abs=0.1 * half)
    # The same resamples for both: against itself every one has the ratio 1.
    assert found["mCE"] == {"value": 1, "interval": [1, 1]}


def test_a_baseline_without_errors_defines_no_mce(monkeypatch):
    errors, baseline = two_corruptions(monkeypatch)
    baseline.corrupted[:, 1] = False
    found = figures(errors, baseline)
    line = next(line for line in corruption_errors.lines_of(found, "it") if line.startswith("mCE"))
    assert "not defined" in line


@pytest.mark.slow
def test_the_command_prints_writes_and_shows(shades, command, tmp_path):
    path = "HERE/corrupted_shades.py"
    argv = ("HERE/run", "--baseline", "HERE/baseline", "--experiment", path, "--baseline-experiment", path)
    files = [tmp_path / name for name in ("sheet.png", "table.md", "table.tex")]
    options = [word for option, file in zip(("preview", "markdown", "latex"), files, strict=True)
               for word in (f"--{option}", str(file))]  # fmt: skip
    status, out, err = command(*argv, *options)
    assert status == 0
    assert "made up" in out
    assert "and not comparable" in out
    assert f"{shades / 'baseline'}: translation …" in err
    record = json.loads((shades / "run" / "robustness.json").read_text())
    result = json.loads((shades / "run" / "result.json").read_text())
    assert record["clean"]["accuracy"] == pytest.approx(result["metrics"]["test"]["accuracy"])
    assert record["params_digest"] == result["params_digest"]
    assert (record["split"], record["notice"]) == ("test", "made up\nand not comparable")
    errors = {
        name: [1 - np.mean([cell["accuracy"] for cell in of["corruptions"][name]])
               for of in (record, record["baseline"])]
        for name in NAMES
    }  # fmt: skip
    mce = np.mean([ours / theirs for ours, theirs in errors.values()])
    assert record["mCE"]["value"] == pytest.approx(mce)
    low, high = record["mCE"]["interval"]
    assert low < mce < high
    assert f"mCE {100 * mce:.1f} % (95 % {100 * low:.1f}..{100 * high:.1f}): 100 % is " in out
    mean = np.mean([ours for ours, _ in errors.values()])
    assert f"mean_corruption_error {100 * mean:.1f} % " in out
    table = files[1].read_text()
    assert table.count("\n| ") == 1 + len(NAMES)
    assert f"{100 * record['corruptions']['contrast'][4]['accuracy']:.1f} (" in table
    assert r"\begin{tabular}" in files[2].read_text()
    with Image.open(files[0]) as sheet:
        assert sheet.width > sheet.height > 3 * 90
    assert [line for line in out.splitlines() if line.startswith("wrote ")][-1] == f"wrote {files[2]}"
    # The report has it, once it is written again.
    with pytest.raises(SystemExit):
        main(["report", str(shades / "run"), "--experiment", path.replace("HERE", str(shades))])
    assert "Robustness to corrupted images" in (shades / "run" / "report.html").read_text()


@pytest.mark.slow
def test_the_preview_has_a_row_a_corruption_and_a_block_an_image(subject):
    sheet = np.asarray(preview(subject))
    pitch, left, top = 96 + 4, 96 + 4, 16 + 4
    assert sheet.shape == (3 * pitch + 4 + 16, 96 + 18 * pitch + 4, 3)
    for number in range(3):
        corner = sheet[top, left + 6 * number * pitch]
        np.testing.assert_array_equal(corner, np.repeat(subject.source.arrays["image"][number, 0, 0], 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "flat"}, "the input image has the shape (30,); only images"),
        ({"kind": "int"}, "the images are stored as int32"),
        ({"kind": "wide"}, "the stored images have values from 0 to 199"),
        ({"kind": "target"}, "the test split does not have class labels"),
        ({"kind": "silent"}, "has no function predict; add one"),
        ({"num_seeds": 2}, "trained 2 seeds together"),
    ],
)
def test_what_cannot_be_measured_is_one_line(shades, tmp_path, options, message):
    record = {"experiment": "corrupted_shades", "code": "", "options": options}
    (tmp_path / "run.json").write_text(json.dumps(record))
    path = str(shades / "corrupted_shades.py")
    with pytest.raises(UserError, match="has not finished"):
        open_classifier(tmp_path, "test", path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        open_classifier(tmp_path, "test", path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_outputs_that_are_no_logits_are_refused(subject, mesh1):
    picture = dataclasses.replace(subject, outputs=lambda variables, batch: batch["image"])
    with pytest.raises(UserError, match=r"have the shape \(16, 6, 5, 1\) and the dtype uint8"):
        measure_errors(picture, mesh1)


def test_other_data_than_the_run_had_are_refused(shades, tmp_path, subject):
    record = read_json(shades / "run" / "run.json")
    record["options"]["data_seed"] = 9
    write_json(tmp_path / "run.json", record)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(
        UserError, match="was trained on shades .* give the folder of the same data with --data-dir"
    ):
        open_classifier(tmp_path, "test", str(shades / "corrupted_shades.py"))
    del record["dataset"]
    write_json(tmp_path / "run.json", record)
    other = open_classifier(tmp_path, "test", str(shades / "corrupted_shades.py"))
    with pytest.raises(UserError, match="were trained on different data"):
        robustness.check_same_images(subject, other)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "robustness needs RUN (the folder of a run)"),
        (["a", "b"], "robustness does not take the word 'b'"),
        (["HERE"], "does not hold a run"),
        (["HERE/run", "--splt", "test"], "there is no option --splt; did you mean --split?"),
        (
            ["HERE/run", "--experiment", "HERE/corrupted_shades.py", "--split", "validation"],
            "choose one of test",
        ),
        (
            ["HERE/run", "--experiment", "HERE/corrupted_shades.py", "--preview", "/nowhere/a.png"],
            "/nowhere/a.png cannot be written",
        ),
    ],
)
def test_mistakes_are_one_line(command, argv, message):
    status, _, err = command(*argv)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
