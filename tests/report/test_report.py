"""The report of a run: what it says, that it says it safely, and that it never costs a run."""

import base64
import collections
import hashlib
import html.parser
import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from dl import optimizers, task
from dl.cli.commands import main
from dl.cli.main import main as run_experiment
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.experiment import Experiment
from dl.models.mlp import MLP
from dl.report import plots, write_report
from dl.report.record import Record
from dl.report.sections import facts
from dl.runs.find import find_experiment
from dl.runs.predictions import Predictions
from dl.system.energy import CPU_WATTS_PER_CORE, GRAMS_CO2_PER_KILOWATT_HOUR, estimate_energy

NUM_CLASSES, SIZE = 4, 120
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, NUM_CLASSES, SIZE).astype(np.int32)
LOGITS = RANDOM.normal(size=(SIZE, NUM_CLASSES)) + 2 * np.eye(NUM_CLASSES)[LABELS]
LOG_P = (LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))).astype(np.float32)
IMAGES = RANDOM.integers(0, 256, (SIZE, 3, 3, 1), np.uint8)
ACCURACY = float((LOG_P.argmax(1) == LABELS).mean())

HOSTILE = [
    "<script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</svg><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="',
    "<!-- <p>",
    "]]><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% for x in y %}",
    "{{ config.__class__.__init__.__globals__ }}",
    "javascript:alert(1)",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "&lt;script&gt;&#60;b&#62;",
    "a\x00b\x1b[31m\u202e\ud800<b>",
]


def experiment_of(name, class_names):
    class Named(ArraySplits):
        pass

    Named.class_names = tuple(class_names)
    source = ArraySource({"image": IMAGES, "label": LABELS})
    model = MLP(hidden=(5,), num_classes=NUM_CLASSES)
    return Experiment(
        data=Named(name, train=source, evaluations={"test": source}),
        task=task.classification(model),
        tx=optimizers.sgd(0.1),
        num_steps=1,
        batch_size=8,
    )


def make_run(folder, word="plain", notice="made up"):
    """Writes the folder of a run with `word` in every text; returns an experiment with the same data."""
    experiment = experiment_of(word, [f"{word}{c}" for c in range(NUM_CLASSES)])
    identity = experiment.data.identity
    data = {**vars(identity), "name": word, "version": word}
    start = dict.fromkeys(("time", "host", "platform", "mesh"), word)
    run = {
        "experiment": word,
        "code": word,
        "options": {word: word, "rate": 2, "depth": 3},
        "defaults": {word: word, "rate": 1, "depth": 3},
        "dataset": data,
        "notice": notice,
        "num_parameters": 99,
        "created": word,
        "versions": {word: word},
        "commit": word,
        "uncommitted_changes": True,
        "starts": [{**start, "cpus": 2, "processes": 1, "devices": ["cpu"], "argv": [word, word]}],
    }
    result = {
        "metrics": {"test": {"accuracy": ACCURACY, word: 0.5}, "validation": {"accuracy": 0.25}},
        "intervals": {"test": {"accuracy": [0.125, 0.875]}},
        "interval_methods": {"test": {"accuracy": "Wilson, over examples"}},
        "seed": 0,
        "steps": 20,
        "epochs": 2.0,
        "examples_per_second": 100.0,
        "num_parameters": 99,
        "seconds": 100.0,
        "train_seconds": 63.0,
        "input_seconds": 3.0,
        "compile_seconds": 20.0,
        "evaluation_seconds": 10.0,
        "saving_seconds": 4.0,
        "peak_memory_bytes": {"host": 3 * 2**20},
        "dataset": data,
        "notice": notice,
        "devices": ["cpu"],
        "stopped_early": word,
        "params_digest": word,
        "best": {"split": word, "metric": word, "step": 3},
    }
    lines = [
        {"kind": kind, "step": 10 * epoch, "epoch": float(epoch), "loss": 1 / epoch, word: 0.5}
        for epoch in (1, 2, 3)
        for kind in ("train", "epoch", "validation", word)
    ]
    lines[0] |= {"learning_rate": 0.1, "gradient_norm": 2.0, "examples_per_second": 100.0}
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    cell = {"accuracy": 0.625, "interval": [0.5, 0.75]}
    robustness = {
        "split": word,
        "num_examples": SIZE,
        "dataset": data,
        "constants": word,
        "params_digest": word,
        "clean": cell,
        "corruptions": {word: [cell, {**cell, "accuracy": 0.5}], f"{word}_2": [cell, cell]},
        "mean_corruption_error": {"value": 0.4375, "interval": [0.25, 0.625]},
        "mCE": {"value": 1.5, "interval": [1.25, None]},
    }
    (folder / "robustness.json").write_text(json.dumps(robustness))
    names = tuple(name.encode("utf-8", "replace").decode() for name in experiment.data.class_names)
    index = np.arange(SIZE, dtype=np.int32)
    Predictions("test", SIZE, index, LABELS, LOG_P, names).save(folder / "predictions.npz")
    return experiment


class Page(html.parser.HTMLParser):
    """What a browser would see: tags with their attributes, and text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data):
        self.text += data


def page_of(folder, *args):
    write_report(folder, folder / "report.html", *(args or (None,)))
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return page_of(folder, make_run(folder))


@pytest.mark.parametrize("word", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text(tmp_path, plain, word):
    page = page_of(tmp_path, make_run(tmp_path, word, notice=word))
    assert [(tag, sorted(attrs)) for tag, attrs in page.tags] == [
        (tag, sorted(attrs)) for tag, attrs in plain.tags
    ]
    for tag, attrs in page.tags:
        assert tag not in ("script", "iframe", "object", "base", "form")
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
        assert attrs.get("href", "#").startswith(("#", "data:,"))
        assert attrs.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    shown = " ".join(word.encode("utf-8", "backslashreplace").decode().split())
    assert page.words.count(shown) > 20


def test_nothing_is_loaded_and_no_script_runs(plain):
    policies = [attrs["content"] for tag, attrs in plain.tags if attrs.get("http-equiv")]
    (policy,) = policies
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy


def test_the_policy_knows_the_style_sheet(tmp_path):
    make_run(tmp_path)
    write_report(tmp_path, tmp_path / "report.html", None)
    text = (tmp_path / "report.html").read_text()
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in text


def test_headline_interval_and_figures(plain):
    shown = f"{100 * ACCURACY:.2f} %"
    assert f"test accuracy {shown} 95 % interval 12.50 % to 87.50 %, Wilson, over examples" in plain.words
    assert "validation accuracy 0.25" in plain.words


def test_figures_of_classes_agree_with_scikit_learn(plain):
    probabilities = np.exp(LOG_P)
    for c in range(NUM_CLASSES):
        auc = roc_auc_score(c == LABELS, probabilities[:, c])
        precision = average_precision_score(c == LABELS, probabilities[:, c])
        row = re.search(
            rf"plain{c} {(c == LABELS).sum()} [\d.]+ [\d.]+ [\d.]+ ([\d.]+) ([\d.]+)", plain.words
        )
        assert float(row[1]) == pytest.approx(auc, abs=6e-5)
        assert float(row[2]) == pytest.approx(precision, abs=6e-5)
    for c, counts in enumerate(confusion_matrix(LABELS, LOG_P.argmax(1))):
        assert f"plain{c} {' '.join(map(str, counts))}" in plain.words


def test_the_most_confident_mistakes_come_first_with_their_pictures(plain):
    wrong = np.flatnonzero(LOG_P.argmax(1) != LABELS)
    order = wrong[np.argsort(-LOG_P[wrong].max(1))][:25]
    pictures = [attrs for tag, attrs in plain.tags if tag == "img"]
    assert len(pictures) == len(order)
    for picture, row in zip(pictures, order, strict=True):
        label, predicted = LABELS[row], LOG_P[row].argmax()
        assert picture["alt"] == f"row {row}: a plain{label} taken for plain{predicted}"
        content = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), IMAGES[row, ..., 0])
    confidence = f"{100 * math.exp(LOG_P[order[0]].max()):.1f} %"
    assert f"predicted plain{LOG_P[order[0]].argmax()} ({confidence})" in plain.words


def test_the_notice_stands_beside_every_figure(tmp_path):
    page = page_of(tmp_path, make_run(tmp_path, notice="NOT COMPARABLE, and why.\nMore."))
    figures = sum(tag == "figure" for tag, _ in page.tags)
    assert figures >= 7
    assert page.words.count("NOT COMPARABLE") >= figures + 8
    assert "More." in page.words


def test_robustness_is_a_plot_and_its_figures(plain):
    assert f"Of {SIZE} examples of the plain split of plain, with the constants of plain" in plain.words
    assert "mean corruption error, not normalised by a baseline 0.4375 (0.2500 to 0.6250)" in plain.words
    assert "mCE; 1 is the baseline 1.5000 (no interval)" in plain.words
    assert (
        "plain 0.6250 (0.5000 to 0.7500) 0.6250 (0.5000 to 0.7500) 0.5000 (0.5000 to 0.7500)" in plain.words
    )
    assert "The lowest is 0.5000, under plain." in plain.words
    assert "were tried as corrupted copies only" in plain.words
    place = f"{plots.RIGHT:g},{plots.BOTTOM + (plots.TOP - plots.BOTTOM) * 0.5:g}"
    assert any(attrs.get("points", "").split()[-1:] == [place] for _, attrs in plain.tags)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Robustness: "),
        ('{"corruptions": {"a": [{}]}}', "Robustness: it was measured with other parameters"),
        ('{"params_digest": "plain", "corruptions": [1]}', ""),
        ('{"params_digest": "plain", "corruptions": {"a": 1, "b": [2, {"accuracy": "c"}]}}', ""),
        ("[]", "Robustness: "),
    ],
)
def test_a_robustness_file_of_another_form_does_not_break_the_report(tmp_path, content, message):
    make_run(tmp_path)
    (tmp_path / "robustness.json").write_text(content)
    page = page_of(tmp_path)
    assert message in page.words
    assert ("What is missing here Robustness" in page.words) == bool(message)


def test_layers_budget_memory_energy_and_changed_options(plain):
    inner = 9 * 5 + 5
    assert f"Dense_0 Dense 1 x 9 1 x 5 {inner} {2 * 9 * 5}" in plain.words
    waiting = "waiting for input 3 s 3.0 %"
    for text in (
        waiting,
        "compilation 20.0 s 20.0 %",
        "training steps 1 min 00 s 60.0 %",
        "saving 4 s 4.0 %",
    ):
        assert text in plain.words
    assert "recording) 3 s 3.0 %" in plain.words
    assert "host (resident memory of the process) 3 MiB" in plain.words
    assert "rate 2 1 changed" in plain.words
    assert "depth 3 3 changed" not in plain.words
    hours = 100 / 3600
    watts = 2 * CPU_WATTS_PER_CORE
    assert f"{watts:.4g} W" in plain.words
    assert f"{watts * hours:,.3g} Wh" in plain.words


def test_plots_have_names_descriptions_and_tables(plain):
    tags = [tag for tag, _ in plain.tags]
    drawn = [attrs for tag, attrs in plain.tags if tag == "svg" and attrs.get("class") == "plot"]
    assert len(drawn) == tags.count("figure") == tags.count("desc") == tags.count("details")
    ids = [attrs["id"] for _, attrs in plain.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(set(attrs["aria-labelledby"].split()) <= set(ids) for attrs in drawn)
    assert all(attrs["href"][1:] in ids for tag, attrs in plain.tags if tag == "a")
    assert all(attrs.get("alt") for tag, attrs in plain.tags if tag == "img")


def test_without_data_predictions_or_result_it_says_what_is_missing(tmp_path):
    experiment = make_run(tmp_path)
    other = experiment_of("plain", ["a"] * NUM_CLASSES)
    changed = ArraySource({"image": IMAGES[::-1].copy(), "label": LABELS})
    object.__setattr__(other.data, "evaluations", {"test": changed})
    page = page_of(tmp_path, other)
    assert "the data set at hand is not the one that the run had" in page.words
    assert "img" not in [tag for tag, _ in page.tags]
    page = page_of(tmp_path, None, ["Layers and pictures: there is no experiment x."])
    assert "there is no experiment x." in page.words
    (tmp_path / "predictions.npz").write_bytes(b"nothing")
    assert "What needs predictions:" in page_of(tmp_path, experiment).words
    (tmp_path / "predictions.npz").unlink()
    assert "Predictions: none were kept at the end of the run." in page_of(tmp_path).words
    (tmp_path / "result.json").unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('\n{"kind": "trai')
    assert "not finished" in page_of(tmp_path).words
    (tmp_path / "metrics.jsonl").unlink()
    assert "The learning curves: metrics.jsonl has no lines." in page_of(tmp_path).words


def test_an_accuracy_that_the_predictions_do_not_have_is_named(tmp_path):
    make_run(tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    result["metrics"]["test"]["accuracy"] = ACCURACY - 0.05
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert "Agreement: the kept predictions have" in page_of(tmp_path).words


def test_several_seeds_have_a_point_each(tmp_path):
    make_run(tmp_path)
    (tmp_path / "predictions.npz").unlink()
    result = json.loads((tmp_path / "result.json").read_text())
    values = [0.5, 0.6, 0.7, 0.8]
    result["members"] = [{"seed": k, "metrics": {"test": {"accuracy": v}}} for k, v in enumerate(values)]
    result["metrics"] = {"test": {"accuracy": 0.65}}
    half = 3.1824463 * np.std(values, ddof=1) / 2  # Student's t of 3 degrees of freedom
    result["intervals"] = {"test": {"accuracy": [0.65 - half, 0.65 + half]}}
    result["interval_methods"] = {"test": {"accuracy": "Student, over 4 seeds"}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = page_of(tmp_path)
    assert f"65.00 % ± {100 * half:.2g}" in page.words
    assert "Student, over 4 seeds" in page.words
    counts = collections.Counter(attrs.get("class") for tag, attrs in page.tags if tag == "circle")
    assert counts["d0"] >= len(values)
    assert "kept of runs with one seed only" in page.words


@pytest.mark.parametrize(
    ("devices", "watts"),
    [
        (["cpu"] * 8, 0),
        (["NVIDIA H100 80GB HBM3"] * 8, 8 * 700),
        (["NVIDIA L4"], 72),
        (["NVIDIA L40S"], 350),
        (["TPU v3"] * 2, 450),
    ],
)
def test_energy_is_rated_power_times_time(devices, watts):
    estimate = estimate_energy(devices, 4, 1800.0)
    power = watts + 4 * CPU_WATTS_PER_CORE
    assert estimate.kilowatt_hours == pytest.approx(power / 1000 / 2)
    assert estimate.grams_co2 == pytest.approx(power / 2000 * GRAMS_CO2_PER_KILOWATT_HOUR)


def test_an_unknown_device_has_no_estimate():
    assert estimate_energy(["Abacus 1"], 4, 1.0) == "the rated power of Abacus 1 is not known here"


def test_utilization_is_what_the_model_needs_over_what_the_devices_could():
    def found(*devices):
        result = {"examples_per_second": 1e4, "train_flops_per_example": 6e9, "devices": devices}
        return dict(facts(Record({}, [], result, None, {}, [])))

    two = found(*["NVIDIA A100-SXM4-40GB"] * 2)
    assert two["computed in training"] == "60,000.0 GFLOPs a second"
    assert two["model FLOPs utilization"] == "9.6 % of the devices' 16-bit peak"
    for unknown in (["cpu"], ["NVIDIA H100 NVL"], ["NVIDIA L4", "Abacus 1"]):
        assert "model FLOPs utilization" not in found(*unknown)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.03, 2.31), (-5, 5), (0, 4220), (1e-7, 3e-3), (0.93, 0.96)]
)
def test_ticks_are_round_and_inside(low, high):
    found = [tick for tick, _ in plots.ticks(low, high)]
    assert 3 <= len(found) <= 8
    step = found[1] - found[0]
    assert step / 10 ** math.floor(math.log10(step * 1.001)) == pytest.approx(
        round(step / 10 ** math.floor(math.log10(step * 1.001)))
    )
    np.testing.assert_allclose(np.diff(found), step)
    assert low - 1e-9 <= found[0]
    assert found[-1] <= high + 1e-9


def test_a_line_lies_where_its_axes_say():
    drawn = plots.plot("t", "d", "x", "y", [plots.Series("a", [0, 5, 10], [0, np.nan, 1], has_dots=True)],
                       x_range=(0, 10), y_range=(0, 1))  # fmt: skip
    assert drawn.series[0].dots == [(drawn.left, plots.BOTTOM), (plots.RIGHT, plots.TOP)]
    assert drawn.x_ticks[0] == (drawn.left, "0")
    assert drawn.y_ticks[-1] == (plots.TOP, "1")


SOURCE = '''
"""Tiny."""
import numpy as np

from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.models.mlp import MLP


def experiment(rate: float = 0.1):
    """Trains."""
    label = np.arange(16, dtype=np.int32) % 2
    images = np.zeros((16, 2, 2, 1), np.uint8) + 9 * label[:, None, None, None].astype(np.uint8)
    source = ArraySource({"image": images, "label": label})
    model = MLP(hidden=(), num_classes=2)
    return Experiment(data=ArraySplits("tiny", train=source, evaluations={"test": source}),
                      task=task.classification(model), tx=optimizers.sgd(rate), num_steps=2,
                      batch_size=16)
'''


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a finished run, and its code."""
    folder = tmp_path_factory.mktemp("tiny")
    path = folder / "tiny_report.py"
    path.write_text(SOURCE)
    run_experiment(
        find_experiment(str(path)), ["--workdir", str(folder / "run"), "--mesh", "data=1", "--rate", "0.5"]
    )
    return folder


@pytest.mark.slow
def test_a_run_ends_with_its_report(tiny):
    page = Page(tiny / "run" / "report.html")
    assert "rate 0.5 0.1 changed" in page.words
    assert "Dense_0" in page.words
    assert "What is missing here" not in page.words


def command(*argv):
    with pytest.raises(SystemExit) as exit_:
        main(["report", *map(str, argv)])
    return exit_.value.code


@pytest.mark.slow
def test_the_command_writes_it_again(tiny, tmp_path, capsys):
    out = tmp_path / "again.html"
    assert command(tiny / "run", "--out", out, "--experiment", tiny / "tiny_report.py") == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    again = Page(out).words.split()
    # What only the command computes is one more section, and one more entry of the contents.
    assert again.count("Explanations") == 2
    rest = iter(again)
    assert all(word in rest for word in Page(tiny / "run" / "report.html").words.split())
    assert command(tiny / "run", "--out", out, "--experiment", "nowhere.at.all") == 0
    assert "Layers and pictures: there is no experiment nowhere.at.all" in Page(out).words


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "report needs RUN (the folder of a run)"),
        (("nowhere",), "nowhere does not hold a run"),
        (("RUN", "more"), "report does not take the word 'more'"),
        (("RUN", "--out", "/nowhere/report.html"), "/nowhere/report.html cannot be written"),
    ],
)
def test_mistakes_are_one_line(tiny, capsys, argv, message):
    assert command(*(str(tiny / "run") if word == "RUN" else word for word in argv)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_report_that_fails_does_not_fail_the_run(tiny, tmp_path, capsys, monkeypatch):
    def broken(*args):
        raise RuntimeError("no ink\nat all")

    monkeypatch.setattr("dl.report.write_report", broken)
    run_experiment(find_experiment(str(tiny / "tiny_report.py")), ["--workdir", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
    again = f"to try again, run python -m dl report {tmp_path / 'run'}"
    assert capsys.readouterr().err == f"the report was not written (RuntimeError: no ink); {again}\n"


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_has_nothing_to_complain_about(tmp_path):
    page_of(tmp_path, make_run(tmp_path, HOSTILE[0], HOSTILE[4]))
    (tmp_path / "bad.html").write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\"><p style='color: red'>"
    )

    def complaints(name):
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom")
        address = (tmp_path / name).as_uri()
        done = subprocess.run(
            [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", address],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "</html>" in done.stdout
        return re.findall(r"CONSOLE.*", done.stderr)

    assert complaints("bad.html")  # else this proves nothing
    assert not complaints("report.html")


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not hold a run"):
        write_report(tmp_path, tmp_path / "report.html", None)
