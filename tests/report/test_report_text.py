"""The sections of a report about text, of predictions that were written by hand."""

import dataclasses

import numpy as np
import pytest

from dl.report.language_model import language_section
from dl.report.samples import samples_section
from dl.report.token_predictions import masked_section, sequence_section, tagging_section
from dl.report.token_text import TokenText
from dl.runs.predictions import LanguageModel, MaskedLanguageModel, SequenceToSequence, Tagging

NAN = np.nan
NAMES = ("[PAD]", "the", " cat", " sees", "\n", "[EOS]")


def lines_of(section, group=0, example=0):
    """The lines of an example: name, text, and the shaded words."""
    shown = section.examples[group][1][example]
    return [
        (name, "".join(word for word, _ in words), [word for word, shade in words if shade])
        for name, words in shown.lines
    ]


def all_text(section):
    parts = [text for pair in section.figures for text in pair]
    parts += [cell for table in section.tables for row in table.rows for cell in row]
    parts += [p.description for p in section.plots]
    return " ".join([*parts, *(e.caption for _, shown in section.examples for e in shown)])


def test_tokens_that_are_read_and_not_predicted_are_shown_without_a_shade():
    # Two packed sequences and padding; then a row of padding alone, in which nothing is predicted.
    token = np.array([[1, 2, 3, 1, 2, 0, 0], [0, 0, 0, 0, 0, 0, 0]], np.int32)
    loss = np.array([[1.0, 2.0, NAN, 0.5, NAN, NAN], [NAN] * 6], np.float32)
    kept = LanguageModel(
        *("test", 2, np.arange(2), np.array([3.5, 0.0], np.float32), np.array([1, 0]), np.array([3, 0])),
        *(np.array([0, 1]), 1, token, loss, NAMES),
    )
    section = language_section(kept)
    assert lines_of(section) == [("", "the cat seesthe cat", [" cat", " sees", " cat"])]
    figures = dict(section.figures)
    assert figures["loss, nats a token"].startswith("1.167")  # 3.5 / 3
    assert figures["tokens"] == "3"
    assert "nan" not in all_text(section).lower()
    assert section.examples[0][1][0].caption == "row 0, 1.167 nats a token"
    assert section.plots == []  # of the row of padding, the only random one
    one = dataclasses.replace(kept, num_worst=0)
    assert language_section(one).plots[0].x_label == "place in the row"
    whole = dataclasses.replace(one, token_loss=np.where(np.arange(6) < 3, 1.0, loss * NAN))
    assert language_section(whole).plots[0].x_label == "tokens before"


def of_tokens(token, target, guess, loss, names=NAMES):
    """The arguments of a `Tokens` that keeps every sequence in full; the first is the worst."""
    counts = np.isfinite(loss)
    size = len(loss)
    return (
        *(
            "test",
            size,
            np.arange(size),
            np.where(counts, loss, 0).sum(1),
            (counts & (target == guess)).sum(1),
        ),
        *(counts.sum(1), np.arange(size), 1, token, target, guess, loss, names),
    )


def test_masked_tokens_are_shown_with_their_predictions():
    token = np.array([[1, 0, 3, -1], [1, 2, -1, -1]], np.int32)
    target = np.array([[-1, 2, 3, -1], [-1, -1, -1, -1]], np.int32)
    guess = np.array([[1, 1, 3, 0], [1, 1, 1, 1]], np.int32)
    loss = np.array([[NAN, 2.0, 0.1, NAN], [NAN] * 4])
    section = masked_section(MaskedLanguageModel(*of_tokens(token, target, guess, loss)))
    assert lines_of(section) == [("", "the [cat → the]  [sees] ", ["[cat → the]", "[sees]"])]
    assert lines_of(section, group=1) == [("", "the cat", [])]
    assert section.examples[1][1][0].caption == "row 1, no token is predicted"
    assert "nan" not in all_text(section).lower()


def test_a_target_sequence_is_shown_below_its_source():
    token = np.array([[1, 2, 5, -1]], np.int32)
    target, guess = np.array([[3, 4, 5]], np.int32), np.array([[3, 2, 5]], np.int32)
    section = sequence_section(
        SequenceToSequence(*of_tokens(token, target, guess, np.array([[0.0, 3.0, 0.0]])))
    )
    assert lines_of(section) == [
        ("source", "the cat[EOS]", []),
        ("target", r" sees\n[EOS]", [r"\n"]),
        ("predicted", " sees cat[EOS]", [" cat"]),
    ]
    assert dict(section.figures)["sequences predicted right"] == "0"


def test_figures_of_tags_agree_with_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    random = np.random.default_rng(0)
    target = random.integers(-1, 3, (40, 6))
    guess = np.where(random.random(target.shape) < 0.6, np.maximum(target, 0), 1)
    loss = np.where(target >= 0, 0.5, NAN)
    names = ("noun", "verb", "other")
    kept = Tagging(*of_tokens(np.ones_like(target), target, guess, loss), names)
    table = tagging_section(kept).tables[0]
    counted = target[1:] >= 0  # the worst sequences are left out of the tables
    found = {row[0]: [float(cell) for cell in row[2:]] for row in table.rows}
    expected = np.stack(precision_recall_fscore_support(target[1:][counted], guess[1:][counted])[:3], 1)
    for name, figures in zip(names, expected, strict=True):
        assert found[name] == pytest.approx(figures, abs=1e-4)
    words = lines_of(tagging_section(kept))[0][1]
    assert "[verb" in words or "[noun" in words


def test_pieces_of_words_are_joined_and_control_characters_are_visible():
    text = TokenText(("[PAD]", "film", "##s", "fine", "\x1b[2J"))
    assert text.join([3, 1, 2]) == "fine films"
    assert text.word(2) == "s"
    assert "\x1b" not in text(4)
    assert TokenText(())(17) == "17 "
    assert text.join([1, 7]) == "film<7>"


def test_samples_keep_the_first_and_the_last_of_each_prompt():
    lines = [{"step": k, "prompt": prompt, "text": f"{k}"} for k in range(50) for prompt in ("a", "b")]
    section = samples_section([*lines, {"step": 1, "text": 3}])
    assert [title for title, _ in section.examples] == ["After the prompt 'a'", "After the prompt 'b'"]
    captions = [example.caption for example in section.examples[0][1]]
    assert (captions[0], captions[-1]) == ("after step 0", "after step 49")
    assert len(captions) <= 12
    assert samples_section([{"step": 1}]) is None
