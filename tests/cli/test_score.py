"""`python -m dl score`: BLEU and chrF of a translation model, and their place in result.json."""

import csv
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dl import load_run, train
from dl.analysis import translation
from dl.analysis.translation import score_translation
from dl.data.text.tokenizer import ByteTokenizer
from dl.runs.find import find_experiment

EXPERIMENT = '''
"""A tiny model that translates."""
from dl import Experiment, optimizers, task
from dl.data import translation
from dl.models.transformer import Transformer


def experiment(dataset: str = "{pairs}"):
    """Trains."""
    data = translation(dataset, max_length=32, tokenizer="characters")
    roles = data.tokenizer.special_ids
    model = Transformer(data.vocab_size, 8, 1, 2, max_length=32, is_norm_first=True)
    learned = task.sequence_to_sequence(
        model, start_id=roles["start"], end_id=roles["end"], padding_id=roles["padding"]
    )
    return Experiment(data=data, task=learned, tx=optimizers.adam(1e-2), num_steps=2, batch_size=8)
'''


WORDS = (
    {"Birds": "Vögel", "Dogs": "Hunde", "Cats": "Katzen"},
    {"see": "sehen", "hear": "hören", "follow": "verfolgen", "like": "mögen"},
    {"mice": "Mäuse", "men": "Männer", "trains": "Züge", "bees": "Bienen"},
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The file of an experiment, and a run of it."""
    folder = tmp_path_factory.mktemp("translator")
    pairs = folder / "pairs.tsv"
    words = [WORDS[k].items() for k in range(3)]
    lines = [f"{a} {b} {c}.\t{x} {y} {z}." for (a, x), (b, y), (c, z) in itertools.product(*words)]
    pairs.write_text("\n".join(["source\ttarget", *lines]) + "\n")
    file = folder / "tiny.py"
    file.write_text(EXPERIMENT.format(pairs=pairs))
    return str(file), train(find_experiment(str(file))(), folder=folder / "run").folder


@pytest.mark.slow
def test_the_scores_are_those_of_sacrebleu_and_stand_in_the_result(dl, made, tmp_path):
    sacrebleu = pytest.importorskip("sacrebleu")
    file, run = made
    out_file = tmp_path / "translations.csv"
    status, out, err = dl("score", str(run), "--experiment", file, "--num-beams", "1", "--csv", str(out_file))
    assert status == 0, err
    with out_file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    result = json.loads((run / "result.json").read_text())
    columns = [[row[name] for row in rows] for name in ("translation", "reference")]
    expected = sacrebleu.corpus_bleu(columns[0], [columns[1]]).score
    assert result["metrics"]["test"]["bleu"] == pytest.approx(expected, abs=1e-6)
    assert result["signatures"]["bleu"].startswith("nrefs:1")
    # Every word was seen in training beside several others, so word for word everything is right.
    (baseline,) = [one for one in result["baselines"] if one["name"].startswith("word-for-word")]
    assert baseline["metrics"]["test"]["bleu"] > 90
    assert baseline["differences"]["test"]["bleu"]["high"] < 0
    assert "word for word" in out


@pytest.mark.slow
def test_scores_of_another_split_stand_beside_those_before(dl, made):
    file, run = made
    for split in ("test", "validation"):
        assert dl("score", str(run), "--experiment", file, "--num-beams", "1", "--split", split)[0] == 0
    result = json.loads((run / "result.json").read_text())
    (baseline,) = [one for one in result["baselines"] if one["name"].startswith("word-for-word")]
    assert baseline["metrics"].keys() == baseline["differences"].keys() == {"test", "validation"}
    assert result["metrics"]["validation"]["bleu"] >= 0


@pytest.mark.slow
def test_a_loaded_run_is_scored_as_the_command_does(dl, made):
    file, run = made
    assert dl("score", str(run), "--experiment", file, "--num-beams", "1")[0] == 0
    found = score_translation(load_run(run, file), num_beams=1)
    result = json.loads((run / "result.json").read_text())
    assert found.scores.figures["bleu"].value == pytest.approx(result["metrics"]["test"]["bleu"])


@pytest.mark.slow
def test_other_data_than_those_of_the_run_are_refused(dl, made, tmp_path):
    file, run = made
    pairs = Path(file).parent / "pairs.tsv"
    before = pairs.read_text()
    try:
        pairs.write_text(before.replace("mice", "rats"))
        status, _, err = dl("score", str(run), "--experiment", file, "--num-beams", "1")
    finally:
        pairs.write_text(before)
    assert status == 2
    assert err.splitlines()[-1].startswith("error: the run was trained on pairs.tsv (sha256 ")


def test_a_text_that_is_cut_within_a_character_still_fits():
    tokenizer = ByteTokenizer(("padding", "start", "end"))
    run = SimpleNamespace(experiment=SimpleNamespace(data=SimpleNamespace(tokenizer=tokenizer)))
    for text in ("aaaaaaaü Wörter", "ü" * 20, "short"):
        cut = translation._cut(run, text, 8)
        assert len(tokenizer.encode(cut)) <= 8
        assert cut == text or text.startswith(cut.rstrip("\ufffd"))


@pytest.mark.slow
def test_a_run_that_does_not_translate_is_one_line(dl, tmp_path):
    file = tmp_path / "classifier.py"
    file.write_text("from tests.helpers import EXPERIMENT\n\n\ndef experiment():\n    return EXPERIMENT\n")
    train(find_experiment(str(file))(), folder=tmp_path / "run")
    status, _, err = dl("score", str(tmp_path / "run"), "--experiment", str(file))
    assert status == 2
    assert err.splitlines()[-1] == (
        "error: halfspace has no sources and translations as texts; only a model that was trained on "
        "dl.data.translation can be scored"
    )
