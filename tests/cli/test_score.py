"""`python -m dl score`: BLEU and chrF of a translation model, and their place in result.json."""

import csv
import itertools
import json

import pytest

from dl import train
from dl.runs.find import find_experiment
from tests.helpers import train_in

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


def test_a_run_that_does_not_translate_is_one_line(dl, tmp_path, mesh1):
    train_in(tmp_path, mesh1)
    status, _, err = dl("score", str(tmp_path), "--experiment", "tests/helpers.py")
    assert status == 2
    assert len(err.strip().splitlines()) == 1
