"""`python -m dl generate` and `Result.generate`: the text of a run, and that a mistake is one line."""

import pytest

from dl import UserError, load_run, train
from dl.runs.find import find_experiment
from dl.system.text import printable_text
from tests.helpers import EXPERIMENT as CLASSIFIER
from tests.helpers import train_in

EXPERIMENT = '''
"""A tiny language model of bytes."""
import numpy as np

from dl import Experiment, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.data.text.tokenizer import ByteTokenizer
from dl.models.gpt2 import GPT2


class TextSplits(ArraySplits):
    tokenizer = ByteTokenizer()


def experiment():
    """Trains."""
    text = np.frombuffer((b"to be or not to be, " * 7)[:128], np.uint8)
    return Experiment(
        data=TextSplits("text", train=ArraySource({"tokens": text.reshape(8, 16).astype(np.int32)})),
        task=task.language_model(GPT2(vocab_size=256, max_length=16, dim=8, num_layers=1, num_heads=2)),
        tx=optimizers.adam(1e-2),
        num_steps=2,
        batch_size=8,
    )
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The file of an experiment, and a run of it."""
    folder = tmp_path_factory.mktemp("writer")
    file = folder / "tiny.py"
    file.write_text(EXPERIMENT)
    result = train(find_experiment(str(file))(), folder=folder / "run")
    return str(file), result.folder


@pytest.mark.slow
def test_a_text_is_printed_after_its_prompt(dl, made):
    file, run = made
    options = ["--experiment", file, "--max-tokens", "20", "--temperature", "0.9", "--seed", "4"]
    status, out, _ = dl("generate", str(run), "to be", *options)
    assert status == 0
    result = load_run(run, file)
    (expected,) = result.generate("to be", max_tokens=20, temperature=0.9, seed=4)
    assert "".join(result.stream("to be", max_tokens=20, temperature=0.9, seed=4)) == expected.text
    assert out.rstrip("\n") == printable_text("to be" + expected.text).rstrip("\n")
    assert "\x1b" not in out
    assert len(expected.tokens) == 20
    status, out, _ = dl("generate", str(run), "to", "or", *options, "--num-samples", "2", "--top-k", "1")
    assert status == 0
    texts = result.generate(["to", "or"], max_tokens=20, temperature=0.9, seed=4, num_samples=2, top_k=1)
    written = [printable_text(text.prompt + text.text) for text in texts]
    assert out.rstrip("\n").split("\n---\n") == [text.rstrip("\n") for text in written]


@pytest.mark.slow
def test_a_prompt_may_begin_with_a_dash(dl, made):
    file, run = made
    options = ["--max-tokens", "3", "--experiment", file]
    for prompt, words in (("- to", ["- to", *options]), ("--to", [*options, "--", "--to"])):
        status, out, _ = dl("generate", str(run), *words)
        assert status == 0
        assert out.startswith(prompt)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--temperature=-1"], "--temperature -1.0 is out of range"),
        (["a", "--top-p", "0"], "--top-p 0.0 is out of range"),
        (["a", "--top-p", "1.5"], "--top-p 1.5 is out of range"),
        ([""], "the prompt is empty"),
        (["a" * 17], "has 17 tokens"),
        (["a", "--num-beams", "2", "--top-k", "3"], "does not use top_k=3"),
        (["a", "--stop", ""], "stop is empty"),
        ([], "generate needs PROMPT"),
        (["--stop", "e", "a"], "a text to translate) before the options"),
    ],
)
def test_a_mistake_is_one_line(dl, made, words, message):
    file, run = made
    status, out, err = dl("generate", str(run), *words, "--experiment", file)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.slow
def test_a_classifier_does_not_write(tmp_path, mesh1):
    train_in(tmp_path / "run", mesh1)
    with pytest.raises(UserError, match="only a language model"):
        load_run(tmp_path / "run", CLASSIFIER).generate("a")
