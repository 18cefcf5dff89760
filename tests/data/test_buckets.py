"""Batches of texts of similar length: what an epoch contains, and runs that train on it."""

import signal
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dl
from dl import Experiment, optimizers, task
from dl.data import text_classification
from dl.data.folds import Folds
from dl.data.pipeline import Batches
from dl.data.text.splits import TextSource
from dl.errors import UserError
from dl.models.recurrent import RecurrentClassifier
from dl.sharding import make_mesh
from dl.training.population import Population
from dl.training.signals import Stopped
from tests.helpers import SignallingConsole

LENGTHS = np.array([3, 9, 1, 16, 4, 5, 2, 12, 8, 7, 3, 3, 2, 6, 1, 10])


def source_of(lengths, buckets):
    tokens_NT = np.where(np.arange(max(buckets)) < lengths[:, None], 5, 0).astype(np.int32)
    return TextSource({"tokens": tokens_NT, "label": lengths.astype(np.int32)}, {}, lengths, buckets)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=80),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_epoch_holds_each_text_once_and_whole(lengths, batch_size, seed):
    lengths = np.array(lengths)
    batches = Batches(source_of(lengths, (4, 8, 16)), batch_size, make_mesh({"data": 1}), seed=seed)
    n = batches.steps_per_epoch
    for epoch in (0, 2):
        rows = []
        for step in range(epoch * n, (epoch + 1) * n):
            index_B, mask_B = batches.rows(step)
            width = batches.buckets.lengths[batches.buckets.batch_of(epoch, step - epoch * n)]
            assert width in (4, 8, 16)
            assert lengths[index_B].max() <= width
            rows += index_B[mask_B].tolist()
        assert sorted(rows) == list(range(len(lengths)))


def test_batches_are_cut_where_only_padding_is_left(mesh8):
    batches = Batches(source_of(LENGTHS, (4, 8, 16)), 8, mesh8, seed=1)
    widths = []
    for step in range(2):
        batch = batches[step]
        longest = int(batch["label"].max())
        widths.append(batch["tokens"].shape[1])
        assert widths[-1] == next(bucket for bucket in (4, 8, 16) if bucket >= longest)
        assert (np.asarray(batch["tokens"]) == 5).sum() == np.asarray(batch["label"]).sum()
        assert batch["tokens"].sharding.spec == jax.P(("data", "fsdp"))
    assert sorted(widths) == [4, 16]
    shapes = {shape["tokens"].shape: num_steps for shape, num_steps in batches.shapes}
    assert shapes == {(8, 4): 1, (8, 16): 1}


def test_the_order_differs_between_epochs_and_seeds_but_not_the_lengths_of_the_batches(mesh1):
    source = source_of(np.tile(LENGTHS, 8), (4, 8, 16))
    first, other = (Batches(source, 4, mesh1, seed=seed) for seed in (0, 1))
    n = first.steps_per_epoch
    widths = [[batches[step]["tokens"].shape[1] for step in range(2 * n)] for batches in (first, other)]
    assert widths[0] == widths[1]  # so that both fit into one program
    assert Counter(widths[0][:n]) == Counter(widths[0][n:])
    assert widths[0][:n] != widths[0][n:]
    assert any((first.rows(step)[0] != other.rows(step)[0]).any() for step in range(n))
    together = Population((0, 1)).batches(source, 4, mesh1, 0)
    for step in (0, 5):
        for k, alone in enumerate((first, other)):
            np.testing.assert_array_equal(together[step]["tokens"][k], alone[step]["tokens"])


def test_an_evaluation_keeps_the_order_and_the_full_length(mesh1):
    batches = Batches(source_of(LENGTHS, (4, 16)), 4, mesh1)
    assert batches[0]["tokens"].shape == (4, 16)
    np.testing.assert_array_equal(batches.rows(1)[0], [4, 5, 6, 7])


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    rows = [("a fine film" + " indeed" * (k % 6), "good") for k in range(60)]
    rows += [("a dull film" + " indeed" * (k % 5), "bad") for k in range(60)]
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return str(path)


def experiment(reviews, **changes):
    options = {"buckets": (20, 32), "num_steps": 12, "seed": 0, **changes}
    data = text_classification(reviews, max_length=48, buckets=options["buckets"])
    model = RecurrentClassifier(dim=8, num_classes=2, pooling="max", vocab_size=data.vocab_size)
    return Experiment(
        data=data,
        task=task.classification(model, input_name="tokens"),
        tx=optimizers.adam(0.01),
        num_steps=options["num_steps"],
        batch_size=16,
        eval_every=6,
        seed=options["seed"],
    )


def test_folds_keep_the_buckets(reviews):
    fold = Folds(text_classification(reviews, max_length=48, buckets=(20, 32)), 3)[0].train
    assert fold.buckets == (20, 32, 48)
    np.testing.assert_array_equal(fold.arrays["segment_ids"].sum(-1), fold.lengths)


@pytest.mark.slow
def test_the_loss_of_a_batch_does_not_depend_on_its_padding(reviews, mesh1):
    made = experiment(reviews)
    batches = Batches(made.data.train, 16, mesh1, seed=0)
    step = next(step for step in range(5) if batches[step]["tokens"].shape[1] < 48)
    index_B, mask_B = batches.rows(step)
    whole = {**made.data.train[index_B], "index": index_B, "mask": mask_B}
    variables = made.init(jax.random.key(0), whole)
    losses = [
        made.task.loss(variables["params"], {}, batch, None)[0].compute() for batch in (batches[step], whole)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.slow
def test_runs_with_batches_of_several_lengths(reviews, tmp_path, mesh1):
    whole = dl.train(experiment(reviews), tmp_path / "whole", mesh=mesh1)
    widths = {
        batch["tokens"].shape[1]
        for batch in Batches(experiment(reviews).data.train, 16, mesh1, seed=0).iterate(0, 8)
    }
    assert len(widths) == 3
    with pytest.raises(Stopped):
        dl.train(
            experiment(reviews), tmp_path / "parts", mesh=mesh1, console=SignallingConsole(5, signal.SIGTERM)
        )
    resumed = dl.train(experiment(reviews), tmp_path / "parts", mesh=mesh1)
    assert resumed.record["params_digest"] == whole.record["params_digest"]
    members = dl.train(experiment(reviews), mesh=mesh1, population=Population((0, 1))).record["members"]
    assert members[0]["metrics"]["test"]["loss"] == pytest.approx(whole.metrics["test"]["loss"], rel=1e-4)


@pytest.mark.parametrize("bucket", [0, 2.5, "16"])
def test_a_bucket_that_is_no_length_is_refused(bucket, reviews):
    with pytest.raises(UserError, match="buckets="):
        text_classification(reviews, buckets=(bucket,))
