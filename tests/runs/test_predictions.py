"""What a run keeps of its last predictions, and `python -m dl predict`."""

import csv
import dataclasses
import io
import os
import shlex
import shutil
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import log_softmax

from dl import optimizers, task
from dl.cli.commands import main
from dl.data import ArraySource, ArraySplits
from dl.data.pipeline import Batches
from dl.errors import UserError
from dl.experiment import Experiment
from dl.models.mlp import MLP
from dl.report.classifier import classifier_sections
from dl.runs.console import Console
from dl.runs.predictions import (
    ClassificationOutcomes,
    Kept,
    LanguageModel,
    MaskedLanguageModel,
    MultiLabel,
    Outputs,
    Predictions,
    Reconstruction,
    Regression,
    SequenceToSequence,
    Tagging,
    collect_classes,
    collect_outputs,
    collect_predictions,
    collection,
    figures_of,
    outputs_fn,
    read_predictions,
)
from dl.system.json_files import read_json, write_json
from dl.training.population import consecutive
from tests.helpers import train_in

MODEL = MLP(hidden=(), num_classes=3)


def source_of(size, seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (size, 2, 2, 1), np.uint8)
    return ArraySource({"image": images, "label": random.integers(0, 3, size).astype(np.int32)})


EXPERIMENT = Experiment(
    data=ArraySplits("noise", train=source_of(12, 0), evaluations={"test": source_of(21, 1)}),
    task=task.classification(MODEL),
    tx=optimizers.sgd(0.1),
    num_steps=2,
    batch_size=8,
    eval_batch_size=8,
)
VARIABLES = MODEL.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))


def expected(source):
    """The model, in NumPy."""
    dense = VARIABLES["params"]["Dense_0"]
    inputs = source.arrays["image"].reshape(len(source), -1) / 255
    return log_softmax(inputs @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]), axis=-1)


@pytest.mark.parametrize("devices", [1, 8])
def test_every_row_once_and_in_order_on_any_number_of_devices(devices, request):
    mesh = request.getfixturevalue(f"mesh{devices}")
    source = EXPERIMENT.data.evaluations["test"]
    found = collect_predictions(EXPERIMENT, VARIABLES, Batches(source, 8, mesh), mesh, "test")
    np.testing.assert_array_equal(found.index, np.arange(21))
    np.testing.assert_array_equal(found.label, source.arrays["label"])
    np.testing.assert_allclose(found.log_probabilities, expected(source), atol=1e-5)
    assert found.log_probabilities.dtype == np.float32
    assert (found.split, found.num_examples, found.class_names) == ("test", 21, ("0", "1", "2"))


def test_of_a_large_split_the_same_sample_is_kept(monkeypatch, mesh1):
    monkeypatch.setattr(collection, "MAX_BYTES", 5 * (3 * 4 + 4))
    source = EXPERIMENT.data.evaluations["test"]
    found = collect_predictions(EXPERIMENT, VARIABLES, Batches(source, 8, mesh1), mesh1, "test")
    assert len(found.index) == 5
    assert found.num_examples == 21
    assert (np.diff(found.index) > 0).all()
    assert found.index[-1] - found.index[0] > 5  # not the first five
    np.testing.assert_array_equal(found.label, source.arrays["label"][found.index])
    np.testing.assert_allclose(found.log_probabilities, expected(source)[found.index], atol=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
def test_of_large_probabilities_the_outcomes_of_all_examples_are_kept(devices, request, monkeypatch):
    mesh = request.getfixturevalue(f"mesh{devices}")
    source = EXPERIMENT.data.evaluations["test"]
    batches = Batches(source, 8, mesh)
    monkeypatch.setattr(collect_classes, "MAX_FULL_BYTES", len(source) * (3 * 4 + 4))
    full = collect_predictions(EXPERIMENT, VARIABLES, batches, mesh, "test")
    assert isinstance(full, Predictions)  # they just fit
    monkeypatch.setattr(collect_classes, "MAX_FULL_BYTES", len(source) * (3 * 4 + 4) - 1)
    found = collect_predictions(EXPERIMENT, VARIABLES, batches, mesh, "test")
    assert isinstance(found, ClassificationOutcomes)
    for name in ("index", "label", "class_names", "num_examples", "split"):
        np.testing.assert_array_equal(getattr(found, name), getattr(full, name))
    for name, values in vars(full.outcomes).items():
        assert getattr(found, name).dtype == values.dtype
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-6, err_msg=name)
    shown, expected = (classifier_sections(one, None) for one in (found, full))
    assert shown.figures == [pair for pair in expected.figures if pair[0] in dict(shown.figures)]
    for name in ("sample", "accuracy", "error", "worst", "matrix", "confusions", "mistakes", "num_mistakes"):
        assert getattr(shown, name) == getattr(expected, name), name


def test_a_signal_cuts_it_short(mesh1):
    batches = Batches(EXPERIMENT.data.evaluations["test"], 8, mesh1)
    assert collect_outputs(outputs_fn(EXPERIMENT), VARIABLES, batches, mesh1, None, lambda: True) is None


@pytest.mark.parametrize(
    ("change", "arrays", "message"),
    [
        ({}, {"label": np.zeros(21, np.float32)}, "do not have an integer label"),
        ({}, {"label": np.zeros((21, 2), np.int32)}, "do not have an integer label"),
        ({}, {"label": np.full(21, 3, np.int32)}, r"label of row 0, 3, is not in \[0, 3\)"),
        ({}, {"label": np.full(21, -1)}, r"label of row 0, -1, is not in \[0, 3\)"),
        ({"predict": lambda variables, batch: batch["image"]}, {}, "shape .* not logits"),
        ({"predict": lambda variables, batch: batch["label"]}, {}, "shape .* not logits"),
    ],
    ids=["float", "vector", "no class", "negative", "four dimensions", "one dimension"],
)
def test_what_is_no_classification_is_refused_where_one_was_stated(change, arrays, message, mesh1):
    source = ArraySource({**source_of(21, 1).arrays, **arrays})
    experiment = dataclasses.replace(EXPERIMENT, task=EXPERIMENT.task._replace(**change))
    with pytest.raises(UserError, match=message):
        collect_predictions(experiment, VARIABLES, Batches(source, 8, mesh1), mesh1, "test")


def test_without_outputs_there_are_no_predictions(mesh1):
    experiment = dataclasses.replace(EXPERIMENT, task=EXPERIMENT.task._replace(predict=None))
    source = EXPERIMENT.data.evaluations["test"]
    assert collect_predictions(experiment, VARIABLES, Batches(source, 8, mesh1), mesh1, "test") is None


def test_an_experiment_may_say_what_its_outputs_are(mesh1):
    own = EXPERIMENT.task._replace(predict=lambda variables, batch: batch["image"].reshape(-1, 4)[:, :3])
    experiment = dataclasses.replace(EXPERIMENT, task=own)
    source = EXPERIMENT.data.evaluations["test"]
    found = collect_predictions(experiment, VARIABLES, Batches(source, 8, mesh1), mesh1, "test")
    logits = source.arrays["image"].reshape(-1, 4)[:, :3] / 255
    np.testing.assert_allclose(found.log_probabilities, log_softmax(logits, axis=-1), atol=1e-5)


@pytest.mark.slow
def test_a_run_leaves_them_and_they_have_its_accuracy(tmp_path, mesh8):
    result = train_in(tmp_path, mesh8, EXPERIMENT, console=Console(is_quiet=True))
    found = read_predictions(tmp_path / "predictions.npz")
    accuracy = (found.log_probabilities.argmax(-1) == found.label).mean()
    assert result["metrics"]["test"]["accuracy"] == pytest.approx(accuracy)
    parts = [result[f"{part}_seconds"] for part in ("compile", "train", "evaluation", "saving")]
    assert all(seconds > 0 for seconds in parts)
    assert sum(parts) <= result["seconds"] + 0.01
    assert 2**20 < result["peak_memory_bytes"]["host"] < 2**40


@pytest.mark.slow
def test_several_seeds_leave_none(tmp_path, mesh1, capsys):
    train_in(tmp_path, mesh1, EXPERIMENT, population=consecutive(0, 2), console=Console())
    assert not (tmp_path / "predictions.npz").exists()
    assert "no predictions" not in capsys.readouterr().out  # they were not tried


@pytest.mark.slow
def test_a_failure_to_collect_them_does_not_fail_the_run(tmp_path, mesh1, capsys):
    def broken(variables, batch):
        raise TypeError("needs another argument\nand more")

    experiment = dataclasses.replace(EXPERIMENT, task=EXPERIMENT.task._replace(predict=broken))
    result = train_in(tmp_path, mesh1, experiment, console=Console())
    assert result["steps"] == 2
    assert (
        "no predictions of test were written (TypeError: needs another argument)" in capsys.readouterr().out
    )


def test_data_without_classes_leave_none_and_the_line_says_why(tmp_path, mesh1, capsys):
    def soft(source):
        arrays = dict(source.arrays)
        return ArraySource({**arrays, "label": np.eye(3, dtype=np.float32)[arrays["label"]]})

    data = EXPERIMENT.data
    evaluations = {name: soft(source) for name, source in data.evaluations.items()}
    data = dataclasses.replace(data, train=soft(data.train), evaluations=evaluations)
    train_in(tmp_path, mesh1, dataclasses.replace(EXPERIMENT, data=data), console=Console())
    said = " ".join(capsys.readouterr().out.split())
    assert "no predictions of test were written: the data do not have an integer label" in said
    assert "look at predict" not in said


SIZE = 6
INDEX = np.arange(SIZE, dtype=np.int32)
FLOATS = np.arange(2.0 * SIZE, dtype=np.float32).reshape(SIZE, 2)
SHOWN = np.array([5, 0], np.int32)
COMMON = {"metric_names": ("loss",), "example_metrics": np.ones((SIZE, 1, 2), np.float32)}
OF_TOKENS = (
    *("test", SIZE, INDEX, FLOATS[:, 0], INDEX * 0, INDEX % 2, SHOWN, 1),
    *(np.array([[0, 1, -1], [1, 0, 0]], np.int32), np.array([[1, -1, -1], [-1, -1, -1]], np.int32)),
    *(np.array([[1, 0, 0], [0, 0, 0]], np.int32), np.array([[2, np.nan, np.nan]] * 2, np.float32)),
)
KEPT = [
    Predictions("test", SIZE, INDEX, INDEX % 2, FLOATS, ("a", "β"), **COMMON),
    ClassificationOutcomes(
        *("test", SIZE, INDEX, INDEX % 2, 1 - INDEX % 2, INDEX % 2, -FLOATS[:, 1], -FLOATS[:, 0]),
        *(FLOATS[:, 0] * np.nan, FLOATS[:, 1], ("a", "β")),
        **COMMON,
    ),
    MultiLabel("test", SIZE, INDEX, FLOATS > 3, FLOATS, ("a", "b")),
    Regression("test", SIZE, INDEX, FLOATS, FLOATS * np.nan, ("x", "y"), **COMMON),
    Reconstruction("test", SIZE, INDEX, FLOATS[:, 0], SHOWN, 1, FLOATS[SHOWN], FLOATS[SHOWN]),
    LanguageModel(
        *("test", SIZE, INDEX, FLOATS[:, 0], INDEX * 0, INDEX + 1, SHOWN, 1),
        *(np.array([[0, 1, 1], [1, 0, 0]], np.int32), np.full((2, 2), np.nan, np.float32), ("a", "b")),
    ),
    LanguageModel(
        *("test", SIZE, INDEX, FLOATS[:, 0], INDEX * 0, INDEX + 1, SHOWN, 1),
        *(np.array([[0, 9, 1], [1, 0, 0]], np.int32), np.zeros((2, 2), np.float32), ()),
    ),
    MaskedLanguageModel(*OF_TOKENS, ("a", "β")),
    SequenceToSequence(*OF_TOKENS, ()),
    Tagging(*OF_TOKENS, ("a", "b"), ("x", "y")),
    Outputs("test", 9, INDEX, FLOATS[..., None]),
]


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.kind)
def test_every_kind_is_read_as_it_was_written(kept, tmp_path):
    kept.save(tmp_path / "predictions.npz")
    found = read_predictions(tmp_path / "predictions.npz")
    assert type(found) is type(kept)
    for name, value in vars(kept).items():
        np.testing.assert_array_equal(getattr(found, name), value)
    assert list(tmp_path.iterdir()) == [tmp_path / "predictions.npz"]


def arrays_of(kept, path):
    kept.save(path)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file}


def read_or_refuse(path):
    """Returns what the file holds; None where it is refused in one line, as it must be otherwise."""
    try:
        return read_predictions(path)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    return None


HOSTILE = [
    np.array(7),
    np.array("word"),
    np.zeros((0,), np.float32),
    np.zeros((SIZE, 2), np.complex64),
    np.array([{}], object),
    np.full(SIZE, -1),
    np.full(SIZE, 10**9),
    np.zeros(SIZE, ">i4"),
    np.zeros(SIZE, "M8[s]"),
    np.zeros((SIZE, 2, 2, 2), np.float32),
    np.zeros(SIZE, [("a", "i4")]),
    None,
]


@pytest.mark.slow
@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.kind)
def test_whatever_stands_in_the_file_it_is_read_or_refused_in_one_line(kept, tmp_path):
    path = tmp_path / "predictions.npz"
    arrays = arrays_of(kept, path)
    for name in arrays:
        for value in HOSTILE:
            changed = {key: array for key, array in {**arrays, name: value}.items() if array is not None}
            np.savez(path, **changed)
            if (found := read_or_refuse(path)) is None:
                continue
            assert isinstance(found, Kept)
            assert found.sample  # what is read can be used
            assert isinstance(figures_of(found), dict)


def header(shape, dtype="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        header((10**12,)),
        header((2**62, 4)),
        header((2**64,)) + bytes(8),
        header((0, 10**12)),
        header((1000,), "<U1000000"),
        header((1,), "|O") + b"cos\nsystem\n(S'true'\ntR.",
        b"\x93NUMPY\x09\x00",
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', ",
        b"",
        bytes(2**20),
    ],
    ids=["huge", "overflow", "64 bits", "empty", "strings", "pickle", "version", "torn", "none", "zeros"],
)
def test_headers_that_claim_too_much_are_one_line_and_allocate_nothing(content, tmp_path):
    path = tmp_path / "predictions.npz"
    members = {}
    for key, value in arrays_of(KEPT[0], path).items():
        file = io.BytesIO()
        np.lib.format.write_array(file, value, allow_pickle=False)
        members[key] = file.getvalue()
    for name in ("log_probabilities", "class_names", "index"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, member in {**members, name: content}.items():
                archive.writestr(f"{key}.npy", member)
        with pytest.raises(UserError, match="does not hold predictions") as caught:
            read_predictions(path)
        assert "\n" not in str(caught.value)


def test_flipped_bits_and_torn_files_are_refused_or_harmless(tmp_path):
    path = tmp_path / "predictions.npz"
    random = np.random.default_rng(0)
    for kept in KEPT:
        kept.save(path)
        whole = path.read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
            size = len(whole) if random.random() < 0.8 else random.integers(len(whole))
            path.write_bytes(damaged[:size])
            if (found := read_or_refuse(path)) is None:
                continue
            for name, value in vars(kept).items():
                np.testing.assert_array_equal(getattr(found, name), value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "predictions.npz")
    with pytest.raises(UserError, match="not a regular file"):
        read_predictions(tmp_path / "predictions.npz")


def test_predictions_without_a_kind_are_a_classification(tmp_path):
    path = tmp_path / "predictions.npz"
    arrays = arrays_of(KEPT[0], path)
    for name in ("kind", "metric_names", "example_metrics"):
        del arrays[name]
    np.savez_compressed(path, **arrays)  # as before
    assert isinstance(read_predictions(path), Predictions)


def test_a_nan_in_them_is_left_out_of_a_report_and_counted():
    label = np.arange(40, dtype=np.int32) % 2
    log_p = np.log(np.where(np.eye(2)[label] > 0, 0.8, 0.2)).astype(np.float32)
    log_p[3] = np.nan
    index = np.arange(40, dtype=np.int32)
    section = classifier_sections(Predictions("test", 40, index, label, log_p, ("a", "b")), None)
    assert section.accuracy == 1.0
    assert "without 1 whose predictions are no numbers" in section.sample
    with pytest.raises(UserError, match="all 40 predictions are NaN"):
        classifier_sections(Predictions("test", 40, index, label, log_p * np.nan, ("a", "b")), None)


def test_the_file_is_read_without_pickles(tmp_path):
    path = tmp_path / "predictions.npz"
    kept = Predictions("test", 9, np.arange(2), np.arange(2), np.zeros((2, 3), np.float32), ("a", "β", "c"))
    kept.save(path)
    found = read_predictions(path)
    assert (found.split, found.num_examples, found.class_names) == ("test", 9, ("a", "β", "c"))
    np.testing.assert_array_equal(found.log_probabilities, kept.log_probabilities)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file}
    for name, value in {
        "class_names": np.array(["a", {}, "c"], object),
        "label": np.arange(3),
        "log_probabilities": np.zeros(3),
    }.items():
        np.savez(path, **{**arrays, name: value})
        with pytest.raises(UserError, match="does not hold predictions") as caught:
            read_predictions(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="does not hold predictions"):
        read_predictions(path)


SOURCE = '''
"""Bright or dark."""
import numpy as np

from dl import Experiment, main, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.models.mlp import MLP


class Splits(ArraySplits):
    class_names = ("dark", "bright")


def experiment(rate: float = 1.0):
    random = np.random.default_rng(0)
    label = np.arange(64, dtype=np.int32) % 2
    images = (random.integers(0, 100, (64, 4, 4, 1)) + 150 * label[:, None, None, None]).astype(np.uint8)
    source = ArraySource({"image": images, "label": label})
    model = MLP(hidden=(), num_classes=2)
    return Experiment(data=Splits("shades", train=source, evaluations={"validation": source}),
                      task=task.classification(model), tx=optimizers.adam(0.1), num_steps=40,
                      batch_size=64)


if __name__ == "__main__":
    main(experiment)
'''


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """The folder of a finished run, and its code."""
    from dl.cli.main import main as run
    from dl.runs.find import find_experiment

    folder = tmp_path_factory.mktemp("shades")
    path = folder / "shades_of_grey.py"
    path.write_text(SOURCE)
    run(find_experiment(str(path)), ["--workdir", str(folder / "run"), "--mesh", "data=1", "--no-report"])
    Image.new("L", (4, 4), 240).save(folder / "a.png")
    Image.new("RGB", (90, 30), (20, 30, 10)).save(folder / "b.jpg")
    return folder


@pytest.fixture
def predict(shades, capsys):
    def run(*argv):
        with pytest.raises(SystemExit) as exit_:
            main(["predict", *map(str, argv), "--experiment", str(shades / "shades_of_grey.py")])
        printed = capsys.readouterr()
        return exit_.value.code, printed.out, printed.err

    return run


@pytest.mark.slow
def test_one_image_is_a_list_of_classes(shades, predict):
    status, out, err = predict(shades / "run", shades / "a.png")
    assert (status, err) == (0, "")
    (p, first), (q, second) = (line.split() for line in out.splitlines())
    assert (first, second) == ("bright", "dark")
    assert float(p) + float(q) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_a_folder_is_csv_and_what_is_no_image_is_named(shades, predict, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "sub" / name).write_bytes((shades / name).read_bytes())
    (tmp_path / "c.png").write_text("no image")
    status, out, err = predict(shades / "run", tmp_path, "--top", "1")
    assert status == 1
    assert err.count("\n") == 1
    assert "c.png cannot be read as an image" in err
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["class_1"] for row in rows] == ["bright", "dark"]
    assert set(rows[0]) == {"image", "class_1", "probability_1"}
    file = tmp_path / "found.csv"
    status, out, _ = predict(shades / "run", shades / "a.png", shades / "b.jpg", "--csv", file)
    assert (status, out) == (0, f"wrote {file}\n")
    assert [row["class_1"] for row in csv.DictReader(io.StringIO(file.read_text()))] == ["bright", "dark"]


def test_a_folder_is_read_by_the_rules_of_training(shades, predict, tmp_path):
    image = (shades / "a.png").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    new = tmp_path / "new"
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        (new / name).mkdir(parents=True)
        (new / name / "x.png").write_bytes(image)
    for path in (new / "a.JPEG", new / "b.tiff", tmp_path / "elsewhere/c.jfif"):
        path.write_bytes(image)
    for name in ("._a.png", ".hidden.png", "Thumbs.db", "notes.txt"):
        (new / name).write_text("no image")
    (new / "linked").symlink_to(tmp_path / "elsewhere")
    (new / "z.png").symlink_to(shades / "a.png")
    (new / "linked/loop").symlink_to(new)
    status, out, err = predict(shades / "run", new, "--top", "1")
    assert (status, err) == (0, "")
    seen = [row["image"].removeprefix(f"{new}/") for row in csv.DictReader(io.StringIO(out))]
    assert seen == ["a.JPEG", "b.tiff", "linked/c.jfif", "z.png"]
    status, out, _ = predict(shades / "run", new / ".hidden.png", shades / "a.png", shades / "a.png")
    assert status == 1
    assert out.count("a.png") == 2  # a file that is named is read, and once each time it is named


HOSTILE = """
class Splits(ArraySplits):
    class_names = ("=cmd()", "\\x1b[2Jbright")
"""


@pytest.mark.parametrize("num_images", [1, 2])
def test_names_and_prints_of_code_change_neither_terminal_nor_spreadsheet(
    shades, capsys, tmp_path, monkeypatch, num_images
):
    code = tmp_path / f"hostile_shades_{num_images}.py"
    before, after = SOURCE.index("class Splits"), SOURCE.index("def experiment")
    source = SOURCE[:before] + HOSTILE + SOURCE[after:]
    code.write_text(source.replace("    random =", "    print('from the code')\n    random ="))
    name = "=1+\x1b]0;x\x07.png"
    (tmp_path / name).write_bytes((shades / "a.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["predict", str(shades / "run"), *[name] * num_images, "--experiment", str(code)])
    out, err = capsys.readouterr()
    assert "from the code" in err
    assert "from the code" not in out
    assert "\x1b" not in out
    if num_images == 1:
        assert [line.split()[1] for line in out.splitlines()] == ["\\x1b[2Jbright", "=cmd()"]
    else:
        image, first, _, second, _ = out.splitlines()[1].split(",")
        assert (image, first, second) == ("'=1+\\x1b]0;x\\x07.png", "\\x1b[2Jbright", "'=cmd()")


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_mistake(shades, tmp_path):
    words = ["predict", str(shades / "run"), str(shades), "--experiment", str(shades / "shades_of_grey.py")]
    command = f"{shlex.join([sys.executable, '-m', 'dl', *words])} | true"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; sleep 0 | {command}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


PHOTOS = '''
"""Of a folder of images."""
from dl import Experiment, main, optimizers, task
from dl.data import image_classification, steps_per_epoch
from dl.models.mlp import MLP


def experiment(dataset: str = "./photos", num_epochs: int = 8):
    data = image_classification(dataset, validation_fraction=0.2)
    model = MLP(hidden=(), num_classes=data.num_classes)
    return Experiment(data=data, task=task.classification(model), tx=optimizers.adam(0.1),
                      num_steps=num_epochs * steps_per_epoch(len(data.train), 16), batch_size=16)
'''


@pytest.fixture(scope="module")
def of_photos(tmp_path_factory):
    """A folder with photos/, the run `run` on them and its code."""
    from dl.cli.main import main as run
    from dl.runs.find import find_experiment

    folder = tmp_path_factory.mktemp("of_photos")
    random = np.random.default_rng(0)
    for label, name in enumerate(("=dog", "cat")):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = random.integers(90 * label, 90 * label + 60, (6, 5, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")
    code = folder / "of_photos.py"
    code.write_text(PHOTOS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        run(find_experiment(str(code)), ["--workdir", "run", "--mesh", "data=1", "--no-report"])
    return folder


@pytest.fixture
def photos_run(of_photos, tmp_path, monkeypatch):
    """The code in a copy of that folder, which is the working directory."""
    shutil.copytree(of_photos, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "of_photos.py"


def predict_dog(code, capsys, image):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(["predict", str(code.parent / "run"), str(image), "--top", "1", "--experiment", str(code)])
    printed = capsys.readouterr()
    return exit_.value.code, printed.out, printed.err


@pytest.mark.slow
def test_a_finished_run_needs_no_training_data(photos_run, capsys, tmp_path, monkeypatch):
    image = tmp_path / "one.png"
    image.write_bytes((tmp_path / "photos/=dog/3.png").read_bytes())
    with_data = predict_dog(photos_run, capsys, image)
    assert with_data[0] == 0
    assert with_data[1].split()[1] == "=dog"
    (tmp_path / "photos").rename(tmp_path / "archive")
    shutil.rmtree(tmp_path / "cache")
    assert predict_dog(photos_run, capsys, image) == with_data
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert predict_dog(photos_run, capsys, image) == with_data
    # A run of before that was recorded needs the data, and finds them.
    path = tmp_path / "run/run.json"
    write_json(path, {name: value for name, value in read_json(path).items() if name != "data"})
    assert "there is no folder" in predict_dog(photos_run, capsys, image)[2]
    (tmp_path / "archive").rename(tmp_path / "elsewhere/photos")
    assert predict_dog(photos_run, capsys, image) == with_data


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["spec"].pop("image"),
        lambda data: data["spec"]["image"].update(shape=[6, -5, 3]),
        lambda data: data["spec"]["image"].update(shape=[10**9, 10**9, 3]),
        lambda data: data["spec"]["image"].update(shape="abc"),
        lambda data: data["spec"]["image"].update(dtype="no type"),
        lambda data: data.update(spec=[1]),
        lambda data: data.update(class_names=7),
        lambda data: data.update(class_names=[]),
    ],
)
def test_a_record_of_the_data_that_is_damaged_is_one_line(photos_run, capsys, tmp_path, change):
    path = tmp_path / "run/run.json"
    record = read_json(path)
    change(record["data"])
    write_json(path, record)
    status, _, err = predict_dog(photos_run, capsys, tmp_path / "photos/cat/0.png")
    assert status == 2
    assert "run.json is damaged: the record of the data is not valid" in err
    assert err.count("\n") == 1


def test_code_that_has_changed_is_a_line_of_warning(shades, capsys, tmp_path):
    other = tmp_path / "other_shades.py"
    other.write_text(SOURCE.replace("adam(0.1)", "adam(0.2)"))
    with pytest.raises(SystemExit) as exit_:
        main(["predict", str(shades / "run"), str(shades / "a.png"), "--experiment", str(other)])
    assert exit_.value.code == 0
    assert capsys.readouterr().err == "warning: the code of shades_of_grey has changed since this run\n"


def test_options_that_are_gone_are_one_line(shades, capsys, tmp_path):
    other = tmp_path / "no_rate.py"
    other.write_text(SOURCE.replace("rate: float = 1.0", ""))
    with pytest.raises(SystemExit):
        main(["predict", str(shades / "run"), str(shades / "a.png"), "--experiment", str(other)])
    assert "has no option rate any more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "predict needs RUN (the folder of a run)"),
        (["RUN"], "predict needs INPUT (an image file, a folder of images, or a text in quotes)"),
        (["nowhere", "IMAGE"], "nowhere does not hold a run"),
        (["RUN", "absent.png"], "absent.png does not exist; give an image, or a folder of images"),
        (["RUN", "RUN/checkpoints"], "does not contain images"),
        (["RUN", "IMAGE", "--tpo", "2"], "there is no option --tpo; did you mean --top?"),
    ],
)
def test_mistakes_are_one_line(shades, predict, argv, message):
    words = [w.replace("RUN", str(shades / "run")).replace("IMAGE", str(shades / "a.png")) for w in argv]
    status, _, err = predict(*words)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
