"""What a report says beside its figures: what was used, seeds, folds, one notice; and that it is bounded."""

import csv
import json
import random
import re

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from dl.data.splits import short_notice
from dl.report import curves, plots, write_folds_report, write_report
from dl.report.classifier import classifier_sections
from dl.report.record import read_record
from dl.report.sections import facts, options_table
from dl.runs.console import format_epochs, format_figures
from dl.runs.predictions import ClassificationOutcomes

DATA = {"name": "d", "version": "1.0.0", "checksum": "e" * 64, "sizes": {"train": 1_000, "test": 100}}


def write_run(folder, result=None, lines=(), **run):
    """Writes the folder of a run; returns its path."""
    folder.mkdir(exist_ok=True)
    record = {"experiment": "e", "options": {}, "defaults": {}, "dataset": DATA, **run}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if result is not None:
        (folder / "result.json").write_text(json.dumps({"dataset": DATA, "steps": 220, **result}))
    return folder


def words_of(folder):
    write_report(folder, folder / "report.html", None)
    return plain(folder / "report.html")


def plain(path):
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", path.read_text(), flags=re.DOTALL).split())


def test_the_notice_stands_once_in_full_and_shortly_beside_figures(tmp_path):
    notice = "Other data, not mnist.\nWanted mnist, and took INSTEAD what there was."
    metrics = {"test": {"accuracy": 0.5}}
    lines = [{"kind": "train", "step": 1, "epoch": 1.0, "loss": 1.0}]
    words = words_of(write_run(tmp_path, {"metrics": metrics, "notice": notice}, lines, notice=notice))
    assert words.count("INSTEAD") == 1
    assert words.count("Other data, not mnist.") > 4
    assert short_notice(None) == short_notice("") == ""


def test_an_option_left_open_is_shown_with_what_was_used(tmp_path):
    lines = [
        {"kind": "train", "step": step, "epoch": step / 8, "learning_rate": rate}
        for step, rate in ((10, 0.001), (20, 0.004), (30, 0.002))
    ]
    options = dict.fromkeys(("num_epochs", "learning_rate", "batch_size", "loss_below"))
    folder = write_run(tmp_path, {"epochs": 27.5}, lines, options=options, num_steps=220, batch_size=128)
    rows = {row[0]: row[1] for row in options_table(read_record(folder)).rows}
    assert rows == {
        "num_epochs": "none (used: 27.5)",
        "learning_rate": "none (used: 0.004)",
        "batch_size": "none (used: 128)",
        "loss_below": "none",
    }
    found = dict(facts(read_record(folder)))
    assert (found["steps"], found["batch size"]) == ("220 (27.5 epochs)", "128")
    assert found["highest learning rate"] == "0.004"


def test_both_counts_of_flops_are_named(tmp_path):
    counts = {"forward_flops_per_example": 2_000, "forward_flops_per_example_without_padding": 1_500}
    found = dict(facts(read_record(write_run(tmp_path, counts))))
    assert found["forward FLOPs an example"] == "2,000"
    assert found["the same without padding"] == "1,500"


@pytest.mark.parametrize(
    ("epochs", "text"),
    [(5, "5"), (6.875, "6.88"), (0.00914244, "0.00914"), (2.14e9, "2,140,000,000"), (float("nan"), "nan")],
)
def test_epochs_are_short(epochs, text):
    assert format_epochs(epochs) == text


def test_a_loss_is_short_however_large():
    assert format_figures({"loss": 3.123456e33}) == "loss 3.123e+33"
    assert format_figures({"loss": 12_345.678901}) == "loss 12345.6789"
    assert format_figures({"loss": 0.0}) == "loss 0.0000"


@pytest.mark.parametrize(
    ("seeds", "label", "ticks"),
    [
        ([0, 1, 2, 3], "seed", ["0", "1", "2", "3"]),
        ([7, 8], "seed", ["7", "8"]),
        ([3, 3], "number of the run", ["1", "2"]),
        ([0, 10**6], "number of the run", ["1", "2"]),
        (["x", 1], "number of the run", ["1", "2"]),
    ],
)
def test_runs_are_called_by_their_seeds(seeds, label, ticks):
    members = [{"seed": seed, "metrics": {"test": {"loss": 0.1 * k}}} for k, seed in enumerate(seeds)]
    result = {"members": members, "metrics": {"test": {"loss": 0.1}}}
    (drawn,) = curves.seed_points(result, "test")
    assert (drawn.x_label, [text for _, text in drawn.x_ticks]) == (label, ticks)


def test_several_seeds_are_all_named(tmp_path):
    found = dict(facts(read_record(write_run(tmp_path, {"seed": 4, "members": [{"seed": 4}, {"seed": 5}]}))))
    assert found["seeds"] == "4, 5"


RANGES = [
    *((0.99990, 0.99997), (1e-6, 2e-5), (100_000, 100_006), (12_000, 13_000), (0, 3e33), (-1e-5, 1e-5)),
    *((1e15, 1e15 + 8), (-1e299, 1e299), (0, 1e-300), (1_234_567, 1_234_568), (-123.456, -123.455)),
]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_ticks_differ_and_lie_inside_the_picture(low, high):
    line = plots.Series("a", [0.0, 1.0], [low, high])
    drawn = plots.plot("t", "d", "x", "y", [line], x_range=(low, high), y_range=(low, high))
    texts = [text for _, text in drawn.y_ticks]
    assert len(set(texts)) == len(texts) > 1
    for text in texts:  # it ends 5 before the axis, after the label of the axis
        assert drawn.left - 5 - plots.LETTER * len(text) >= 15.9
    for place, text in drawn.x_ticks:
        assert place + plots.LETTER / 2 * min(len(text), 6) <= plots.WIDTH


def folds_record(**more):
    folds = [
        {
            "folder": f"fold-{k}",
            "sizes": {"train": 80, "validation": 40},
            "steps": 10,
            "epochs": 1.25,
            "seconds": 2.0,
            "metrics": {"validation": {"loss": 1.0 + k, "accuracy": 0.5 + k / 100}},
        }
        for k in (1, 2, 3)
    ]
    means = {"loss": 3.0, "accuracy": 0.52}
    return {
        "experiment": "e",
        "options": {"hidden": 3},
        "dataset": DATA,
        "notice": "Other data.\nWhy.",
        "is_selected_on_validation": True,
        "is_stratified": False,
        "folds": folds,
        "metrics": {"validation": means},
        "intervals": {"validation": {"loss": [1.0, 5.0], "accuracy": [0.5, 0.54]}},
        **more,
    }


def test_a_cross_validation_has_a_page(tmp_path, dl):
    (tmp_path / "folds.json").write_text(json.dumps(folds_record()))
    status, out, _ = dl("report", str(tmp_path))
    assert (status, out) == (0, f"wrote {tmp_path}/report.html\n")
    words = plain(tmp_path / "report.html")
    for part in (
        "e: cross-validation",
        "validation accuracy 52.00 % mean of 3 held-out folds; 95 % interval 50.00 % to 54.00 %",
        "fold-2 80 40 10 (1.25 epochs) 3 0.52 2 s",
        "Loss by fold, validation split",
        "Each run ended where its own held-out fold looked best",
        "drawn at random, not stratified",
        "narrower than it should be",
        "The test split was not read.",
        "hidden 3",
    ):
        assert part in words
    assert words.count("Why.") == 1


JUNK = [
    None,
    True,
    -1,
    10**400,
    1e308,
    float("nan"),
    "",
    "<b>\x1b\u202e",
    [],
    [[]],
    {},
    {"a": {"b": []}},
    [1, "x"],
]


def spoil(random_, value):
    """Returns a value of JSON with parts of it replaced by something else."""
    if random_.random() < 0.15:
        return random_.choice(JUNK)
    if isinstance(value, dict):
        return {key: spoil(random_, item) for key, item in value.items()}
    return [spoil(random_, item) for item in value] if isinstance(value, list) else value


def test_a_page_is_made_of_any_json(tmp_path):
    run = {
        "experiment": "e",
        "options": {"num_epochs": None, "seed": 0},
        "defaults": {"seed": 1},
        "dataset": DATA,
        "notice": "n",
        "num_steps": 20,
        "batch_size": 8,
        "versions": {"jax": "0"},
        "starts": [{"time": "t", "argv": ["a"], "devices": ["cpu"], "cpus": 2, "processes": 1}],
    }
    result = {
        "metrics": {"test": {"accuracy": 0.5, "loss": 1.0}, "validation": {"loss": 2.0}},
        "intervals": {"test": {"accuracy": [0.4, 0.6]}},
        "members": [{"seed": k, "metrics": {"test": {"accuracy": 0.5, "loss": 1.0}}} for k in range(2)],
        "best": {"split": "validation", "metric": "loss", "step": 3},
        "dataset": DATA,
        "devices": ["cpu"],
        "peak_memory_bytes": {"host": 3},
        **dict.fromkeys(("steps", "epochs", "seconds", "train_seconds", "examples_per_second"), 3.0),
    }
    lines = [
        {"kind": kind, "step": 1, "epoch": 1.0, "loss": 1.0, "learning_rate": 0.1}
        for kind in ("train", "epoch", "validation")
    ]
    random_ = random.Random(0)
    for _ in range(60):
        for name, value in (("run.json", run), ("result.json", result)):
            spoiled = spoil(random_, value)
            (tmp_path / name).write_text(json.dumps(spoiled if isinstance(spoiled, dict) else value))
        (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(spoil(random_, line)) for line in lines))
        (tmp_path / "folds.json").write_text(json.dumps(spoil(random_, {**folds_record(), "x": 1})))
        write_report(tmp_path, tmp_path / "report.html", None)
        if isinstance(json.loads((tmp_path / "folds.json").read_text()), dict):
            write_folds_report(tmp_path, tmp_path / "folds.html")


def test_a_page_stays_small_whatever_a_run_has_left(tmp_path):
    many = {f"metric_{k}": 0.5 for k in range(5_000)}
    lines = [
        {"kind": f"split_{k}", "step": k, "epoch": float(k), **dict.fromkeys(many, 1.0)} for k in range(30)
    ]
    folder = write_run(
        tmp_path,
        {"metrics": {"test": many}, "members": [{"seed": k} for k in range(2_000)]},
        lines,
        options={"text": "x" * 1_000_000},
        starts=[{"time": str(k)} for k in range(5_000)],
    )
    words = words_of(folder)
    assert (folder / "report.html").stat().st_size < 4_000_000
    assert "The first 200 of 5,000 figures" in words
    assert "The last 50 of 5,000 starts" in words
    assert "(1,000,000 characters)" in words


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "predictions.npz", "robustness.json"])
def test_what_is_damaged_is_named_and_the_rest_is_shown(tmp_path, name):
    result = {"metrics": {"test": {"accuracy": 0.5}}}
    lines = [{"kind": "train", "step": 1, "epoch": 1.0, "loss": 1.0}]
    folder = write_run(tmp_path, result, lines)
    (folder / name).write_bytes(np.random.default_rng(0).bytes(100))
    words = words_of(folder)
    assert "What is missing here" in words
    assert (name in words) or name == "metrics.jsonl"
    assert "Options" in words


def test_a_run_within_its_first_epoch_is_plotted_over_its_steps():
    lines = [
        {"kind": kind, "step": step, "epoch": step / 9000, "loss": 1 / step}
        for step in (1, 2, 3)
        for kind in ("train", "epoch", "validation")
    ]
    (plot,) = curves.curves(lines, {"loss": "nats"})
    assert plot.table.columns[0] == "step"
    assert [row[0] for row in plot.table.rows] == ["1", "2", "3"]
    (longer,) = curves.curves([{**line, "epoch": line["step"] / 2} for line in lines], {"loss": "nats"})
    assert longer.table.columns[0] == "epoch"


NUM_CLASSES, NUM_EXAMPLES = 3_000, 4_000


def predictions_of_many_classes():
    """Every class has an example; a class is taken for the next one ever more often the larger it is."""
    index = np.arange(NUM_EXAMPLES, dtype=np.int32)
    label = np.maximum(index - (NUM_EXAMPLES - NUM_CLASSES), 0)
    predicted = np.where(index % 7 == 0, (label + 1) % NUM_CLASSES, label)
    is_right = predicted == label
    log_p = np.log(np.where(is_right, 0.5, 0.2)).astype(np.float32)
    outcomes = (
        label,
        predicted,
        np.int32(~is_right),
        log_p,
        np.full_like(log_p, np.log(0.5)),
        log_p,
        log_p * 0,
    )
    names = tuple(f"<c{c}>" for c in range(NUM_CLASSES))
    return ClassificationOutcomes("test", NUM_EXAMPLES, index, *outcomes, names)


def test_a_report_of_many_classes_is_short_and_all_classes_stand_beside_it(tmp_path):
    predictions = predictions_of_many_classes()
    predictions.save(write_run(tmp_path, {"metrics": {"test": {"accuracy": 0.5}}}) / "predictions.npz")
    written = write_report(tmp_path, tmp_path / "page.html", None)
    assert written == [tmp_path / "page.html", tmp_path / "page-classes.csv"]
    assert written[0].stat().st_size < 150_000
    words = plain(written[0])
    assert "of 3,000, with the most frequent confusions: rows are labels, columns predictions" in words
    assert "&lt;c0&gt; &lt;c1&gt; 143 14.3 %" in words  # rows 0, 7, … 994 and 1,000 of the 1,001 of class 0
    assert "The 40 classes of 3,000 with the lowest F1, and the 10 with the highest" in words
    assert "All classes are in page-classes.csv, next to this page." in words
    assert "they need the probabilities of all classes" in words
    with written[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(predictions.class_names)
    assert sum(int(row["examples"]) for row in rows) == NUM_EXAMPLES
    matrix = confusion_matrix(predictions.label, predictions.predicted)
    recall = np.diag(matrix) / matrix.sum(1)
    np.testing.assert_allclose([float(row["recall"]) for row in rows], recall, rtol=1e-6)


def test_the_matrix_of_many_classes_is_a_part_of_the_whole_one():
    predictions = predictions_of_many_classes()
    found = classifier_sections(predictions, None).matrix
    whole = confusion_matrix(predictions.label, predictions.predicted)
    classes = [int(name[2:-1]) for name, _ in found.rows]
    assert len(classes) == 20
    assert found.columns == [*(predictions.class_names[c] for c in classes), "all others"]
    for c, (_, cells) in zip(classes, found.rows, strict=True):
        counts = [count for count, _ in cells]
        np.testing.assert_array_equal(counts[:-1], whole[c, classes])
        assert sum(counts) == whole[c].sum()
