"""The pictures and texts of explanations, and which predictions the report explains."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from dl.analysis.explanation import Explanation
from dl.report.explanation_picture import headline, write_picture
from dl.report.explanation_text import to_ansi, to_html, to_words
from dl.report.explanations import NUM_SHOWN, _chosen
from dl.runs.predictions import Predictions

NAMES = ("[PAD]", "a", "<b>", "film", "##s", "\x1b[31m")


def _explanation(**changes):
    fields = {
        "form": "text",
        "method": "occlusion",
        "basis": "fall of the probability",
        "input": np.array([1, 2, 3, 4, 5, 0]),
        "attributions": np.array([0.0, -0.5, 1.0, 0.1, 0.2, 9.0]),
        "is_signed": True,
        "is_shown": np.array([True] * 5 + [False]),
        "input_names": NAMES,
        "target": 1,
        "probabilities": np.array([0.25, 0.75]),
        "class_names": ("bad", "<good>"),
        "label": 0,
        "figures": {},
    }
    return Explanation(**{**fields, **changes})


def _image(**changes):
    weights = np.random.default_rng(0).normal(size=(6, 8))
    pixels = np.random.default_rng(1).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return _explanation(
        **{"form": "image", "input": pixels, "attributions": weights, "is_shown": weights < 9, **changes}
    )


def test_the_page_of_a_text_has_the_tokens_with_their_weights_and_escapes_them():
    page = to_html(_explanation())
    spans = re.findall(r'<span title="([^"]*)" style="background: rgba\(([^)]*)\)[^"]*">([^<]*)</span>', page)
    assert [float(weight) for weight, _, _ in spans] == [0.0, -0.5, 1.0, 0.1, 0.2]  # without padding
    assert [text for _, _, text in spans][1:4] == [" &lt;b&gt;", " film", "s"]
    assert spans[2][1] == "178, 24, 43, 1.00"  # the largest weight speaks for the class
    assert spans[1][1] == "33, 102, 172, 0.50"
    assert "<good>" not in page
    assert "\x1b" not in page


def test_the_colours_of_a_terminal_end_and_a_token_cannot_add_its_own():
    line = to_ansi(_explanation())
    assert line.endswith("\x1b[0m")
    assert set(re.findall("\x1b\\[[0-9;]*m", line)) <= {
        "\x1b[0m",
        *(f"\x1b[38;5;16;48;5;{number}m" for number in range(16, 232)),
    }
    assert "\x1b[31m" not in line


def test_the_shades_of_a_report_are_the_sizes_of_the_weights():
    assert [shade for _, shade in to_words(_explanation())] == [0, 5, 10, 1, 2]


def test_the_headline_has_prediction_label_and_what_is_explained():
    assert headline(_explanation()) == "predicted <good> (75.0%), label bad"
    assert headline(_explanation(target=0, label=None)) == "predicted <good> (75.0%); explained: bad (25.0%)"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_of_an_image_has_the_same_bytes_each_time(channels):
    files = [io.BytesIO() for _ in range(2)]
    for file in files:
        write_picture(_image(input=_image().input[..., :channels]), file)
    assert files[0].getvalue() == files[1].getvalue()
    assert Image.open(files[0]).size == (1080, 432)


def test_the_strongest_places_are_sorted_by_size_and_padding_is_not_one():
    assert _explanation().strongest(3) == [("film", 1.0), ("<b>", -0.5), (NAMES[5], 0.2)]


def test_regions_add_up_to_the_whole():
    found = _image()
    regions = dict(found.by_region())
    assert regions["upper left"] == pytest.approx(found.attributions[:2, :3].sum())
    assert sum(regions.values()) == pytest.approx(found.attributions.sum())


def test_the_first_right_and_the_most_confident_wrong_predictions_are_chosen():
    probability = np.array([0.9, 0.6, 0.7, 0.8, 0.99, 0.95, 0.55])
    log_p = np.log(np.stack([probability, 1 - probability], -1)).astype(np.float32)
    label = np.array([0, 1, 1, 1, 0, 1, 0], np.int32)
    rows = np.arange(7, dtype=np.int32) + 10
    right, wrong = _chosen(Predictions("test", 20, rows, label, log_p, ("a", "b")))
    assert list(right) == [10, 14, 16]
    assert list(wrong) == [15, 13, 12][:NUM_SHOWN]
