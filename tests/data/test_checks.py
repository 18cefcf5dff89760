"""What the data of a run may be: types and shapes of labels, inputs and other features, in whole runs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl import Experiment, losses, metrics, optimizers, task
from dl.data import ArraySource, ArraySplits, checks, splits
from dl.data.images.decoding import resized, unit_range
from dl.data.pipeline import Batches
from dl.errors import UserError
from dl.methods import mixing
from dl.metrics import Mean
from dl.runs.console import Console
from dl.runs.predictions import read_predictions
from dl.types import Aux
from tests.helpers import train_in

SIZE, CLASSES = 24, 3
RANDOM = np.random.default_rng(0)
LABEL = np.arange(SIZE) % CLASSES
IMAGE = (RANDOM.integers(0, 60, (SIZE, 4, 4, 1)) + 90 * LABEL[:, None, None, None]).astype(np.uint8)


class Net(nn.Module):
    """Linear, and refuses pixels that are not in [0, 1]: what it eats is part of its output."""

    @nn.compact
    def __call__(self, x):
        assert jnp.issubdtype(x.dtype, jnp.floating)
        return nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))


MODEL = Net()


class Reader:
    """Rows of arrays behind an interface of its own, as a set on disk is; counts what it hands out."""

    def __init__(self, size=None, **features):
        self.features = {name: np.asarray(values) for name, values in features.items()}
        self.size = size or len(next(iter(self.features.values())))
        self.num_read = 0

    @property
    def spec(self):
        return {n: jax.ShapeDtypeStruct(f.shape[1:], f.dtype) for n, f in self.features.items()}

    def __len__(self):
        return self.size

    def __getitem__(self, indices):
        self.num_read += len(indices)
        return {name: values[indices % len(values)] for name, values in self.features.items()}


def source_of(make=ArraySource, **features):
    arrays = {"image": IMAGE, "label": LABEL.astype(np.int32), **features}
    return ArraySource(arrays) if make is ArraySource else make(**arrays)


def train_on(tmp_path, mesh, source, own=None, folder="run", validation=None, **options):
    model, name = options.pop("model", MODEL), options.pop("input_name", "image")
    experiment = Experiment(
        data=ArraySplits("mine", train=source, evaluations={"test": validation or source}),
        task=own or task.classification(model, input_name=name),
        **{"tx": optimizers.adam(0.1), "num_steps": 6, "batch_size": 8, **options},
    )
    return train_in(tmp_path / folder, mesh, experiment)


def refused(tmp_path, mesh, *args, match, **options):
    """The run is refused in one line, before anything is written."""
    with pytest.raises(UserError, match=match) as caught:
        train_on(tmp_path, mesh, *args, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# Labels.


@pytest.fixture(scope="module")
def expected(tmp_path_factory, mesh1):
    return train_on(tmp_path_factory.mktemp("plain"), mesh1, source_of())["params_digest"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "shape", "dtype"),
    [
        (ArraySource, (-1, 1), np.uint8),
        (ArraySource, (-1,), np.int64),
        (ArraySource, (-1,), ">i2"),
        (Reader, (-1, 1), np.int8),
    ],
)
def test_labels_of_any_whole_type_and_either_shape_are_the_same_labels(
    tmp_path, mesh1, expected, make, shape, dtype
):
    label = LABEL.astype(dtype).reshape(shape)
    result = train_on(tmp_path, mesh1, source_of(make, label=label))
    assert result["params_digest"] == expected
    found = read_predictions(tmp_path / "run/predictions.npz")
    np.testing.assert_array_equal(found.label, LABEL)
    is_right = found.log_probabilities.argmax(-1) == LABEL
    assert result["metrics"]["test"]["accuracy"] == pytest.approx(is_right.mean())


def changed(row, value, dtype):
    label = LABEL.astype(dtype)
    label[row] = value
    return label


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (changed(7, 3, np.int32), r"label of row 7 of the test split is 3 \(int32\), .* classes 0 to 2"),
        (changed(7, -1, np.int64), r"row 7 of the test split is -1 "),
        (changed(23, 255, np.uint8)[:, None], r"row 23 of the test split is 255 \(uint8\)"),
        (changed(2, 2**40, np.int64), "row 2 of the test split is 1099511627776"),
        (changed(5, 1.5, np.float32), r"row 5 of the test split is 1.5 \(float32\)"),
        (changed(5, np.nan, np.float64)[:, None], r"row 5 of the test split is nan"),
        (LABEL.astype(np.float32), r"row 0 of the test split is 0.0 .*whole numbers: label.astype"),
    ],
)
def test_a_label_that_is_no_class_is_named_by_split_row_and_value(tmp_path, mesh1, label, said):
    make = Reader if label.ndim > 1 else ArraySource
    refused(tmp_path, mesh1, source_of(), validation=source_of(make, label=label), match=said)


@pytest.mark.parametrize("shape", [(SIZE, 2), (SIZE, 1, 1)])
def test_labels_of_another_shape_are_refused(tmp_path, mesh1, shape):
    label = np.zeros(shape, np.int32)
    refused(tmp_path, mesh1, source_of(label=label), match="labels of shape .* do not fit logits of shape")


def test_a_source_that_states_its_classes_is_not_read_for_them(tmp_path, mesh1):
    source = source_of(Reader)
    source.num_classes, source.checksum = CLASSES + 1, "known"
    refused(tmp_path, mesh1, source, match="the train split has 4 classes, and the model has 3 outputs")
    assert not source.num_read


@pytest.mark.slow
def test_mixed_examples_have_targets_of_labels_of_either_shape():
    batch = {"image": jnp.asarray(IMAGE), "label": jnp.asarray(LABEL), "mask": jnp.ones(SIZE, bool)}
    mix = mixing.mixup(1.0, CLASSES)
    first, second = (
        mix(jax.random.key(0), {**batch, "label": label})["target"]
        for label in (batch["label"], batch["label"][:, None])
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_labels_of_an_own_loss_are_looked_at_and_never_converted(tmp_path, mesh1):
    seen = {}

    def loss_fn(params, state, batch, key):
        seen.update({name: values.dtype for name, values in batch.items()})
        logits = MODEL.apply({"params": params}, batch["image"])
        loss = Mean.of(losses.cross_entropy(logits, batch["label"]), batch["mask"])
        accuracy = metrics.accuracy(logits, batch["label"].astype(int), batch["mask"])
        return loss, Aux(state, {"loss": loss, "accuracy": accuracy})

    own = task.classification(MODEL)._replace(loss=loss_fn, kind=None)
    extra = {
        "label": LABEL.astype(np.uint8),
        "tokens": IMAGE.reshape(SIZE, -1),
        "region": IMAGE > 99,
        "other": IMAGE,
    }
    result = train_on(tmp_path, mesh1, source_of(**extra), own)
    assert seen["image"] == np.float32
    assert all(seen[name] == values.dtype for name, values in extra.items())
    found = read_predictions(tmp_path / "run/predictions.npz")
    is_right = found.log_probabilities.argmax(-1) == LABEL
    assert result["metrics"]["test"]["accuracy"] == pytest.approx(is_right.mean())
    label = changed(4, 9, np.uint8)
    with pytest.raises(UserError, match="label of row 4 of the train split is 9"):
        train_on(tmp_path, mesh1, source_of(label=label), own, folder="other")


def test_the_labels_of_a_source_that_is_too_large_to_be_read_first_are_checked_as_they_are_read(
    tmp_path, mesh1, monkeypatch
):
    monkeypatch.setattr(checks, "MAX_READ_BYTES", 1000)
    monkeypatch.setattr(splits, "MAX_CHECKSUM_BYTES", 1000)
    monkeypatch.setattr(splits, "NUM_SAMPLED", 10)
    large = Reader(200, image=IMAGE, label=changed(1, 7, np.int32))
    with pytest.raises(UserError, match=r"label of row \d+ is 7 "):
        train_on(tmp_path, mesh1, large, validation=source_of(), num_steps=25)
    assert large.num_read < 10 + 200


# Inputs and other features.


def input_of(image, name="image", preprocess=None):
    """What the model of an experiment reads of the stored input `name`."""
    experiment = Experiment(
        data=ArraySplits("mine", train=source_of()),
        task=task.classification(MODEL, input_name=name),
        tx=optimizers.sgd(0.1),
        num_steps=1,
        batch_size=1,
        **({"preprocess": preprocess} if preprocess else {}),
    )
    return experiment.preprocess({"label": jnp.asarray(IMAGE), name: jnp.asarray(image)})


def test_pixels_are_what_the_model_reads_whatever_its_name_and_its_bits():
    scaled = IMAGE / np.float32(255)
    for image, name, expected in [
        (IMAGE, "photo", scaled),
        (IMAGE[..., 0], "photo", scaled[..., 0]),
        (IMAGE.reshape(SIZE, -1), "image", scaled.reshape(SIZE, -1)),
        (IMAGE.astype(np.uint16) * 257, "image", scaled),  # 65535 is white
        (IMAGE > 99, "image", np.float32(IMAGE > 99)),
        (scaled * 3 - 1, "image", scaled * 3 - 1),
        (IMAGE.reshape(SIZE, -1), "tokens", IMAGE.reshape(SIZE, -1)),
        (LABEL.astype(np.int32), "number", LABEL),
    ]:
        batch = input_of(image, name)
        np.testing.assert_allclose(batch[name], expected, rtol=1e-6)
        assert batch["label"].dtype == np.uint8
    batch = input_of(IMAGE, "photo", resized(8, 8))
    assert batch["photo"].shape == (SIZE, 8, 8, 1)
    assert float(batch["photo"].max()) <= 1
    assert batch["label"].dtype == np.uint8


@pytest.mark.slow
def test_an_input_of_another_name_trains_alike(tmp_path, mesh1, expected):
    source = ArraySource({"photo": IMAGE, "label": LABEL})
    assert train_on(tmp_path, mesh1, source, input_name="photo")["params_digest"] == expected


@pytest.mark.parametrize(("dtype", "name"), [(np.int16, "image"), (np.int64, "photo"), (np.uint32, "image")])
def test_images_of_another_whole_type_are_refused(tmp_path, mesh1, dtype, name):
    source = ArraySource({name: IMAGE.astype(dtype), "label": LABEL})
    refused(
        tmp_path,
        mesh1,
        source,
        input_name=name,
        match=rf"images are stored as u?int\d+ .feature {name}.*uint8",
    )


@pytest.mark.slow
def test_a_row_of_bytes_is_read_as_numbers_and_that_is_said(tmp_path, mesh1, capsys):
    class Embedding(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Dense(CLASSES)(nn.Embed(256, 4)(tokens).mean(1))

    model = Embedding()
    source = ArraySource({"tokens": IMAGE.reshape(SIZE, -1), "label": LABEL})
    experiment = Experiment(
        data=ArraySplits("bytes", train=source),
        task=task.classification(model, input_name="tokens"),
        tx=optimizers.sgd(0.1),
        num_steps=1,
        batch_size=8,
    )
    train_in(tmp_path / "run", mesh1, experiment, console=Console())
    assert "the input tokens, uint8 of shape (16,), is read as integers" in capsys.readouterr().out


def test_an_autoencoder_states_that_its_target_is_an_image(mesh1):
    batch = {"image": jnp.asarray(IMAGE), "target": jnp.asarray(IMAGE), "label": jnp.asarray(LABEL)}
    decoded = unit_range("image", "target")(batch)
    np.testing.assert_array_equal(decoded["target"], decoded["image"])
    assert float(decoded["target"].max()) <= 1
    np.testing.assert_array_equal(decoded["label"], LABEL)


@pytest.mark.parametrize(("make", "name"), [(ArraySource, "mask"), (Reader, "index")])
def test_names_that_batches_keep_for_themselves_are_refused(tmp_path, mesh1, make, name):
    source = source_of(make, **{name: LABEL})
    refused(tmp_path, mesh1, source, match=f"a feature called {name}, .*rename it")


def test_an_input_that_the_data_lack_is_named(tmp_path, mesh1):
    refused(tmp_path, mesh1, source_of(), input_name="photo", match="no feature photo .* have image, label")


@pytest.mark.parametrize(("make", "value"), [(ArraySource, 2**31), (Reader, -(2**31) - 1)])
def test_a_whole_number_that_32_bits_do_not_hold_is_named(tmp_path, mesh1, make, value):
    source = source_of(make, number=changed(9, value, np.int64))
    refused(
        tmp_path,
        mesh1,
        source,
        match=f"number of row 9 of the train split is {value}, which does not fit",
    )


# Sources of one's own.


def test_any_source_trains_and_its_identity_is_its_content(tmp_path, mesh1, expected):
    result = train_on(tmp_path, mesh1, source_of(Reader))
    assert result["params_digest"] == expected
    sources = [
        Reader(image=IMAGE, label=LABEL),
        Reader(image=IMAGE, label=changed(9, 1, int)),
        Reader(image=IMAGE[::-1], label=LABEL),
        Reader(image=IMAGE, label=LABEL.astype(np.int8)),
        Reader(2 * SIZE, image=IMAGE, label=LABEL),
    ]
    assert len({ArraySplits("mine", train=source).identity.checksum for source in sources}) == len(sources)
    same = [ArraySplits("mine", train=Reader(image=IMAGE, label=LABEL)).identity for _ in range(2)]
    assert same[0] == same[1]
    assert same[0].sizes == {"train": SIZE}


@pytest.mark.parametrize(
    ("name", "promised", "said"),
    [
        ("label", jax.ShapeDtypeStruct((), np.float32), "label as int64 of shape .* states .*float32"),
        ("image", jax.ShapeDtypeStruct((4, 4, 3), np.uint8), r"image as uint8 of shape \(4, 4, 1\)"),
        (
            "extra",
            jax.ShapeDtypeStruct((), np.int32),
            "has a feature extra, but its examples have only",
        ),
    ],
)
def test_a_source_that_breaks_its_promise_is_one_line(mesh1, name, promised, said):
    class Liar(Reader):
        @property
        def spec(self):
            return {**super().spec, name: promised}

    batches = Batches(Liar(image=IMAGE, label=LABEL), 8, mesh1)
    with pytest.raises(UserError, match=said):
        _ = batches[0]


def test_a_source_that_states_its_checksum_is_not_read_for_it():
    source = Reader(image=IMAGE)
    source.checksum = "a"
    first = ArraySplits("mine", train=source).identity
    assert source.num_read == 0
    source.checksum = "b"
    assert ArraySplits("mine", train=source).identity != first
