import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl import losses
from dl.data.text.packing import pack
from dl.errors import UserError
from dl.models.blocks.positions import positions_in_segments

LENGTH = 16


def documents_of(sizes):
    """Returns documents in which every token of all documents is different."""
    ends = np.cumsum(sizes)
    return [np.arange(1 + end - size, 1 + end) for size, end in zip(sizes, ends, strict=True)]


def segments_of(arrays):
    """Returns the tokens and targets of each segment of packed rows."""
    for row in range(len(arrays["tokens"])):
        ids = arrays["segment_ids"][row]
        for number in range(1, ids.max() + 1):
            yield arrays["tokens"][row][ids == number], arrays["targets"][row][ids == number]


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=40).filter(lambda s: max(s) > 1))
def test_every_document_is_there_once_and_predicts_only_itself(sizes):
    documents = documents_of(sizes)
    arrays = pack(documents, LENGTH).source.arrays
    pieces = [document[k : k + LENGTH + 1] for document in documents for k in range(0, len(document), LENGTH)]
    expected = sorted((tuple(piece[:LENGTH]), tuple(piece[1:])) for piece in pieces)
    found = sorted(
        (tuple(tokens), tuple(targets[targets != losses.NOT_COUNTED]))
        for tokens, targets in segments_of(arrays)
    )
    assert found == expected
    is_padding = arrays["segment_ids"] == 0
    assert (arrays["targets"][is_padding] == losses.NOT_COUNTED).all()
    assert (arrays["tokens"][is_padding] == 0).all()
    assert (np.diff(is_padding.astype(int), axis=1) >= 0).all()  # padding is at the end of a row


def test_rows_without_cut_documents_agree_with_the_losses_and_the_models():
    random = np.random.default_rng(0)
    packed = pack(documents_of(random.integers(1, LENGTH + 1, 50)), LENGTH, padding_id=7)
    arrays = packed.source.arrays
    targets = losses.next_tokens(arrays["tokens"], jax.numpy.asarray(arrays["segment_ids"]))
    np.testing.assert_array_equal(arrays["targets"], targets)
    is_token = arrays["segment_ids"] > 0
    positions = np.asarray(positions_in_segments(jax.numpy.asarray(arrays["segment_ids"])))
    np.testing.assert_array_equal(arrays["positions"][is_token], positions[is_token])
    assert (arrays["tokens"][~is_token] == 7).all()
    assert packed.utilization == is_token.mean()


def best_fit_decreasing(sizes, length):
    """Returns how full each row becomes, by the definition of best-fit decreasing."""
    used = []
    for size in sorted(sizes, reverse=True):
        fits = [k for k in range(len(used)) if used[k] + size <= length]
        if fits:
            used[max(fits, key=used.__getitem__)] += size
        else:
            used.append(size)
    return sorted(used)


def test_rows_are_filled_by_best_fit_decreasing():
    sizes = np.random.default_rng(1).integers(1, 100, 300)
    ids = pack(documents_of(sizes), 100).source.arrays["segment_ids"]
    assert sorted((ids > 0).sum(1)) == best_fit_decreasing(sizes.tolist(), 100)


def test_packing_many_documents_takes_little_time_and_space():
    sizes = np.random.default_rng(0).geometric(1 / 40, 20_000)
    documents = np.split(np.zeros(sizes.sum(), np.uint16), np.cumsum(sizes)[:-1])
    assert pack(documents, 128).utilization > 0.999


@pytest.mark.parametrize("documents", [[], [np.array([1])], [np.array([], np.uint8)]])
def test_documents_without_a_target_are_refused(documents):
    with pytest.raises(UserError, match="no document has 2 tokens"):
        pack(documents, 8)
