"""Masks, target sequences, tags and classes of texts: small experiments, from command to report."""

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from dl import load_run, optimizers, task
from dl.cli.main import main
from dl.data import ArraySource, ArraySplits
from dl.data.pipeline import Batches
from dl.diagnostics.overfit import overfit
from dl.errors import UserError
from dl.experiment import Experiment
from dl.report import write_report
from dl.runs.find import find_experiment
from dl.runs.folder import RunFolder
from dl.runs.predictions import (
    MaskedLanguageModel,
    Predictions,
    SequenceToSequence,
    Tagging,
    collect_predictions,
    read_predictions,
)
from dl.task import corrupted
from dl.training.restore import restore_variables

FOLDER = Path(__file__).parent / "kinds"
NAMES = ("masked_sentences", "reversed_letters", "tagged_letters", "opinions")
pytestmark = pytest.mark.slow


@dataclasses.dataclass
class Finished:
    """A run that has ended, and what its model says of the test split as an evaluation reads it."""

    folder: Path
    experiment: Experiment
    result: dict
    predictions: object
    report: str
    batch: dict
    outputs: np.ndarray


@pytest.fixture(scope="module")
def finished(tmp_path_factory, mesh1):
    """Runs each of the experiments once, by its command."""
    runs = {}

    def run(name):
        if name not in runs:
            folder = tmp_path_factory.mktemp(name) / "run"
            function = find_experiment(str(FOLDER / f"{name}.py"))
            main(function, ["--workdir", str(folder), "--mesh", "data=1"])
            experiment = function()
            arrays = experiment.data.evaluations["test"].arrays
            batch = {feature: jnp.asarray(values) for feature, values in arrays.items()}
            batch |= {"index": jnp.arange(len(arrays[experiment.task.input_name]), dtype=jnp.int32)}
            if (corrupt := experiment.task.kind.corrupt) is not None:
                batch = corrupted(batch, corrupt)
            variables = restore_variables(experiment, RunFolder(folder), mesh1)
            runs[name] = Finished(
                folder,
                experiment,
                json.loads((folder / "result.json").read_text()),
                read_predictions(folder / "predictions.npz"),
                (folder / "report.html").read_text(),
                {feature: np.asarray(values) for feature, values in batch.items()},
                np.asarray(jax.jit(experiment.task.predict)(variables, batch)),
            )
        return runs[name]

    return run


def words_of(page):
    """The text of a page, without its markup and style."""
    page = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def check_tokens(run, targets):
    """Compares metrics and kept predictions of tokens with the outputs; returns the cross-entropies."""
    counts = targets >= 0
    log_p = log_softmax(run.outputs.astype(float), -1)
    loss = -np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    is_right = log_p.argmax(-1) == targets
    measured, kept = run.result["metrics"]["test"], run.predictions
    assert measured["loss"] == pytest.approx(loss[counts].mean(), rel=1e-4)
    assert measured["accuracy"] == pytest.approx(is_right[counts].mean(), rel=1e-6)
    np.testing.assert_array_equal(kept.num_tokens, counts.sum(1))
    np.testing.assert_array_equal(kept.num_right, (is_right & counts).sum(1))
    np.testing.assert_allclose(kept.loss, np.where(counts, loss, 0).sum(1), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(kept.target, targets[kept.shown])
    np.testing.assert_array_equal(kept.guess, log_p.argmax(-1)[kept.shown])
    np.testing.assert_allclose(kept.token_loss, np.where(counts, loss, np.nan)[kept.shown], atol=1e-3)
    assert "disagreement" not in run.result
    assert "What is missing here" not in words_of(run.report)


def test_masked_tokens(finished):
    run = finished("masked_sentences")
    assert isinstance(run.predictions, MaskedLanguageModel)
    assert len(run.predictions.shown) < len(run.outputs)  # masks follow from the row in the split
    check_tokens(run, run.batch["targets"])
    read = np.where(run.batch["segment_ids"] > 0, run.batch["tokens"].astype(int), -1)
    np.testing.assert_array_equal(run.predictions.token, read[run.predictions.shown])
    mean = run.result["metrics"]["test"]["loss"]
    assert run.result["metrics"]["test"]["perplexity"] == pytest.approx(np.exp(mean), rel=1e-4)
    page = words_of(run.report)
    for words in ("Masked tokens", "perplexity", "The hardest tokens", "The most frequent confusions", "→"):
        assert words in page


def test_attention_of_the_first_example_is_shown(finished):
    run = finished("masked_sentences")
    assert run.report.count('alt="attention weights of layers/layer') == 4
    assert "layers/layer1/attention, head 1" in run.report
    assert "the first example of the validation split, all 4 heads" in words_of(run.report)
    for name in NAMES[1:]:  # their models have no attention
        assert "attention weights" not in finished(name).report


def test_samples_of_the_training_are_shown_and_other_lines_left_out(finished, tmp_path):
    folder = finished("masked_sentences").folder
    lines = [{"step": k, "prompt": "the cat", "text": f" <b>text {k}</b>"} for k in range(100)]
    other = ["", "no json", '{"step": 1}', '{"prompt": 3, "text": 4}', "[]"]
    path = folder / "samples.jsonl"
    path.write_text("\n".join([*map(json.dumps, lines), *other]))
    try:
        write_report(folder, tmp_path / "report.html", None)
    finally:
        path.unlink()
    page = (tmp_path / "report.html").read_text()
    assert "<b>" not in page
    assert "After the prompt" in page
    assert "after step 0" in page
    assert "text 99" in page
    assert 3 <= page.count("after step") <= 12
    assert ">Samples<" not in finished("masked_sentences").report


def test_target_sequences(finished):
    run = finished("reversed_letters")
    target = run.batch["target"]
    targets = np.where(target == 0, -1, target)
    assert isinstance(run.predictions, SequenceToSequence)
    check_tokens(run, targets)
    is_exact = ((run.outputs.argmax(-1) == targets) | (targets < 0)).all(1)
    assert run.result["metrics"]["test"]["exact_match"] == pytest.approx(is_exact.mean(), rel=1e-6)
    page = words_of(run.report)
    for words in ("source:", "target:", "predicted:", "sequences predicted right", "[EOS]"):
        assert words in page
    assert "[PAD]" not in page


def test_tags(finished):
    run = finished("tagged_letters")
    assert isinstance(run.predictions, Tagging)
    assert run.predictions.class_names == ("consonant", "vowel", "repeated")
    check_tokens(run, run.batch["label"])
    assert "perplexity" not in run.result["metrics"]["test"]
    page = words_of(run.report)
    for words in ("Classes of tokens", "precision", "[consonant]", "[vowel]"):
        assert words in page


def test_classes_of_texts(finished):
    run = finished("opinions")
    assert isinstance(run.predictions, Predictions)
    log_p = log_softmax(run.outputs.astype(float), -1)
    np.testing.assert_allclose(run.predictions.log_probabilities, log_p, atol=1e-4)
    page = words_of(run.report)
    wrong = np.flatnonzero(log_p.argmax(-1) != run.batch["label"])
    names = run.experiment.data.token_names
    for row in wrong:
        text = "".join(names[token] for token in run.batch["tokens"][row] if token)
        assert text.strip() in page
    assert "[PAD]" not in page
    assert "The pictures" not in page


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_an_interval_a_direction_and_a_unit(finished, name):
    result = finished(name).result
    for metric in result["metrics"]["test"]:
        low, high = result["intervals"]["test"][metric]
        assert low < high
        assert result["better"][metric] in ("min", "max")
        assert result["units"][metric]
    assert result["headline"] in result["metrics"]["test"]


def test_a_sound_experiment_overfits_one_batch():
    result = overfit(find_experiment(str(FOLDER / "tagged_letters.py"))())
    assert result.has_passed, result


def test_packed_rows_with_tokens_that_are_not_predicted(mesh1):
    class Bigrams(nn.Module):
        @nn.compact
        def __call__(self, tokens_BT, segment_ids_BT=None, positions_BT=None, train=False):
            return nn.Embed(5, 5)(tokens_BT)

    # Two sequences and padding in a row; the row goes on with token 3. The second row counts nothing.
    tokens = np.array([[1, 2, 3, 4, 1, 0], [1, 2, 1, 2, 4, 2], [0] * 6], np.int32)
    segment_ids = np.array([[1, 1, 1, 2, 2, 0], [1] * 6, [0] * 6], np.int32)
    targets = np.array([[2, 3, -1, 1, -1, -1], [-1, 1, 2, 4, 2, 3], [-1] * 6], np.int32)
    source = ArraySource({"tokens": tokens, "segment_ids": segment_ids, "targets": targets})
    experiment = Experiment(
        data=ArraySplits("packed", train=source, evaluations={"test": source}),
        task=task.language_model(Bigrams()),
        tx=optimizers.sgd(0.1),
        num_steps=1,
        batch_size=3,
    )
    batch = {name: jnp.asarray(values) for name, values in source.arrays.items()}
    variables = experiment.task.init(jax.random.key(0), batch)
    kept = collect_predictions(experiment, variables, Batches(source, 3, mesh1), mesh1, "test")
    table = np.asarray(variables["params"]["Embed_0"]["embedding"])
    log_p = log_softmax(table.astype(float), -1)[tokens]
    expected = -np.take_along_axis(log_p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    expected[targets < 0] = np.nan
    np.testing.assert_allclose(kept.token_loss, expected[kept.shown], atol=1e-5)
    np.testing.assert_array_equal(kept.token[:, :-1], tokens[kept.shown])
    np.testing.assert_array_equal(kept.token[:, -1], np.array([0, 3, 0])[kept.shown])
    np.testing.assert_array_equal(kept.num_tokens, [3, 5, 0])
    np.testing.assert_allclose(kept.loss, np.nansum(expected, 1), atol=1e-5)


# -- predictions from texts


def test_a_run_predicts_from_texts_as_from_their_tokens(finished):
    run = finished("opinions")
    result = load_run(run.folder, str(FOLDER / "opinions.py"))
    names = run.experiment.data.tokenizer.token_names
    texts = [" ".join(names[token] for token in row if token) for row in run.batch["tokens"][:5]]
    np.testing.assert_allclose(result.predict(texts), run.outputs[:5], atol=1e-5)
    long = result.predict(["a film " * 50])
    assert long.shape == (1, 2)
    with pytest.raises(UserError, match="the inputs are one text, 'a fine film'; give a list of texts"):
        result.predict("a fine film")
    with pytest.raises(UserError, match="some inputs are texts and others are not"):
        result.predict(["a fine film", 3])
    other = load_run(finished("tagged_letters").folder, str(FOLDER / "tagged_letters.py"))
    with pytest.raises(UserError, match="of data without a tokenizer; give arrays"):
        other.predict(["abc"])
    assert other.predict(np.array([[5, 4, 1, 1, 1, 1, 1, 1]], np.uint8)).shape == (1, 8, 3)


def test_the_command_predicts_from_texts_and_from_files_of_texts(finished, dl, tmp_path):
    run = finished("opinions")
    experiment = ("--experiment", str(FOLDER / "opinions.py"))
    status, out, err = dl("predict", str(run.folder), "a great film", *experiment)
    assert (status, err) == (0, "")
    found = {name: float(p) for p, name in (line.split() for line in out.splitlines())}
    result = load_run(run.folder, str(FOLDER / "opinions.py"))
    p = softmax(result.predict(["a great film"])[0])
    assert found == pytest.approx({"negative": p[0], "positive": p[1]}, abs=1e-3)
    (tmp_path / "texts.txt").write_text("a dull film\n\na fine film\n")
    words = (str(tmp_path / "texts.txt"), "=so bad film", "a film " * 100)
    status, out, _ = dl("predict", str(run.folder), *words, *experiment, "--top", "1")
    assert status == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["text"] for row in rows][:3] == ["a dull film", "a fine film", "'=so bad film"]
    assert [row["class_1"] for row in rows][:2] == ["negative", "positive"]
    status, _, err = dl(
        *("predict", str(finished("tagged_letters").folder), "abc"),
        *("--experiment", str(FOLDER / "tagged_letters.py")),
    )
    assert (status, err.count("\n")) == (2, 1)
    assert "is a tagging without classes" in err
