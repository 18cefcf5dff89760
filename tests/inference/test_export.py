"""Exported models: their outputs, what they run in, what is refused, and their command."""

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dl as package
from dl import Experiment, UserError, load_exported, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.experiment import stored_batch
from dl.inference.export import export_model
from dl.models.gpt2 import GPT2
from dl.models.recurrent import RecurrentLanguageModel
from dl.models.t5 import T5
from dl.precision import BFLOAT16, computing_in
from dl.runs.find import find_experiment
from dl.sharding import make_mesh
from dl.training.result import Result

pytest.importorskip("flatbuffers", reason="needs flatbuffers: pip install 'dl[export]'")

pytestmark = pytest.mark.slow  # each export lowers the model for three platforms

KINDS = Path(__file__).parent.parent / "kinds"
IMAGES = np.random.default_rng(7).integers(0, 256, (20, 6, 5, 3), np.uint8)


class Net(nn.Module):
    """A small network with a batch norm, which reads its batch size as a Python number."""

    @nn.compact
    def __call__(self, x_BHWC, train=False):
        x_BHWC = nn.Conv(4, (3, 3))(x_BHWC)
        x_BHWC = nn.BatchNorm(use_running_average=not train)(x_BHWC)
        return nn.Dense(3)(nn.relu(x_BHWC).reshape(len(x_BHWC), -1))


def experiment_of(learned, **features):
    features = features or {"image": IMAGES, "label": np.arange(20) % 3}
    return Experiment(
        data=ArraySplits("data", train=ArraySource(features)),
        task=learned,
        tx=optimizers.adam(1e-2),
        num_steps=2,
        batch_size=16,
    )


def untrained(experiment, seed=0):
    """Returns a result with initial variables, without a run."""
    batch = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in stored_batch(experiment, 2).items()}
    variables = jax.jit(experiment.init)(jax.random.key(seed), batch)
    return Result(experiment, {}, run=None, mesh=make_mesh({"data": 1}), variables=variables)


def assert_close(made, expected, tolerance=1e-6):
    assert made.shape == expected.shape
    assert np.abs(made - expected).max() <= tolerance * max(1, np.abs(expected).max())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    return package.train(experiment_of(task.classification(Net())), folder=folder)


@pytest.fixture(scope="module")
def exported(result):
    return export_model(result, result.folder.with_name("exported"))


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported.folder, tmp_path / "copy"))


def test_a_model_reads_stored_images_in_any_number(result, exported):
    expected = result.predict(IMAGES)
    for size in (1, 3, 20):
        assert_close(exported.predict(IMAGES[:size]), expected[:size])
    assert_close(exported.predict({"image": IMAGES.astype(np.int64)}, batch_size=7), expected)
    assert exported.record["functions"]["predict"] == {
        "inputs": {"image": {"dtype": "uint8", "shape": ["batch", 6, 5, 3]}},  # and not the label
        "outputs": [{"dtype": "float32", "shape": ["batch", 3]}],
    }
    assert exported.check()["predict"] <= 1e-6


def test_it_is_lowered_for_accelerators_that_are_not_here(exported):
    content = (exported.folder / "predict.jax_export").read_bytes()
    program = jax.export.deserialize(bytearray(content))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert program.nr_devices == 1
    assert len(content) < 2**15  # the variables lie beside it


def test_the_folder_says_what_it_is_but_not_where_it_was_made(result, exported):
    record = json.loads((exported.folder / "export.json").read_text())
    assert record["params_digest"] == result.record["params_digest"]
    assert record["versions"]["jax"] == jax.__version__
    names = {path.name for path in exported.folder.iterdir()}
    assert names == {*record["files"], "export.json", "SHA256SUMS"}
    assert json.loads((result.folder / "run.json").read_text())["starts"][0]["host"] == platform.node()
    assert "starts" not in json.loads((exported.folder / "run.json").read_text())
    images = IMAGES.tobytes()
    assert not any(images[:90] in path.read_bytes() for path in exported.folder.iterdir())


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (IMAGES[:, :5], r"image has the shape \(20, 5, 5, 3\); expected \(batch, 6, 5, 3\)"),
        (IMAGES[0], r"image has the shape \(6, 5, 3\)"),
        (IMAGES / 255, "image is given as float64; the model reads uint8"),
        (IMAGES.astype(int) - 1, "image is given as int64"),
        (IMAGES[:0], "at least one"),
        ({"picture": IMAGES}, "predict got picture; expected image by name"),
        ([[1], [1, 2]], "image is not an array"),
    ],
)
def test_other_inputs_are_refused(exported, inputs, message):
    with pytest.raises(UserError, match=message) as caught:
        exported.predict(inputs)
    assert "\n" not in str(caught.value)


def assert_refused(folder, word):
    with pytest.raises(UserError) as caught:
        load_exported(folder)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_anywhere_is_refused(copy):
    random = np.random.default_rng(0)
    for path in sorted(copy.iterdir()):
        content = path.read_bytes()
        places = range(len(content)) if path.name == "SHA256SUMS" else random.integers(0, len(content), 20)
        for place in places:
            flipped = bytearray(content)
            flipped[place] ^= 1 << random.integers(0, 8)
            path.write_bytes(flipped)
            assert_refused(copy, "damaged")
        for line_end in (b"\r\n", b"\n\n", b" \n"):
            if path.suffix not in (".jax_export", ".safetensors"):
                path.write_bytes(content.replace(b"\n", line_end))
                assert_refused(copy, "damaged")
        path.write_bytes(content[: len(content) // 2])
        assert_refused(copy, "damaged")
        path.unlink()
        assert_refused(copy, "exported model" if path.name == "SHA256SUMS" else path.name)
        path.write_bytes(content)
    load_exported(copy)


def test_a_list_of_checksums_that_leaves_out_a_file_is_refused(copy):
    sums = copy / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    for k in range(len(lines)):
        sums.write_text("".join(lines[:k] + lines[k + 1 :]))
        assert_refused(copy, "SHA256SUMS")


def test_a_checksum_of_a_file_outside_the_folder_is_refused(copy):
    (copy.parent / "secret").write_text("")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with (copy / "SHA256SUMS").open("a") as file:
        file.write(f"{empty}  ../secret\n")
    assert_refused(copy, "secret")


def test_outputs_that_changed_fail_the_self_test(exported, copy):
    model = load_exported(copy)
    name = min(model.variables)
    model.variables[name] = model.variables[name] + 1
    with pytest.raises(UserError, match="outputs of predict differ from the expected ones by") as caught:
        model.check()
    assert "\n" not in str(caught.value)


ALONE = """
import importlib.util, os, pathlib, sys
import jax, numpy as np
assert len(jax.devices()) == int(sys.argv[1])
assert not any(importlib.util.find_spec(name) for name in ("dl", "flax", "optax", "orbax", "safetensors"))
import reader
functions = reader.load(pathlib.Path("."))
inputs = np.load(sys.argv[2])
outputs = [np.asarray(functions["predict"]({"image": inputs[:size]})) for size in (1, 5, len(inputs))]
mesh = jax.make_mesh((int(sys.argv[1]),), ("data",))
split = jax.device_put(inputs[:12], jax.NamedSharding(mesh, jax.P("data")))
outputs.append(np.asarray(functions["predict"]({"image": split})))
np.savez(sys.argv[3], *outputs)
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Returns a function that runs Python with JAX, NumPy, what these need, and flatbuffers alone."""
    packages = tmp_path_factory.mktemp("packages")
    for name in ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "flatbuffers"):
        place = Path(find_spec(name).origin).parent
        (packages / name).symlink_to(place)
        if (libraries := place.with_name(f"{name}.libs")).exists():
            (packages / libraries.name).symlink_to(libraries)

    def run(folder, num_devices, *words):
        return subprocess.run(
            [sys.executable, "-S", "-W", "error", *map(str, words)],
            cwd=folder,
            env={
                **{name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
                "PYTHONPATH": str(packages),
                "PYTHONDONTWRITEBYTECODE": "1",
                "JAX_NUM_CPU_DEVICES": str(num_devices),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.mark.parametrize("num_devices", [1, 4])
def test_a_process_with_jax_and_numpy_alone_gets_the_same_outputs(result, copy, bare, tmp_path, num_devices):
    np.save(tmp_path / "inputs.npy", IMAGES)
    (copy / "alone.py").write_text(ALONE)
    done = bare(copy, num_devices, "alone.py", num_devices, tmp_path / "inputs.npy", tmp_path / "made.npz")
    assert done.returncode == 0, done.stderr
    expected = result.predict(IMAGES)
    made = np.load(tmp_path / "made.npz")
    for outputs, size in zip(made.values(), (1, 5, 20, 12), strict=True):
        assert_close(outputs, expected[:size])


def test_the_reader_runs_the_self_test_and_refuses_damage(copy, bare):
    done = bare(copy, 2, "check.py")
    assert done.returncode == 0, done.stderr
    assert "predict" in done.stdout
    content = bytearray((copy / "variables.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "variables.safetensors").write_bytes(content)
    done = bare(copy, 2, "check.py")
    assert done.returncode == 1
    assert "variables.safetensors is missing, or does not match SHA256SUMS" in done.stderr
    shown = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=copy, capture_output=True)
    assert shown.stdout == b"variables.safetensors: FAILED\n"


@pytest.mark.parametrize("path", sorted(KINDS.glob("*.py")), ids=lambda path: path.stem)
def test_every_kind_of_task(path, tmp_path):
    experiment = find_experiment(str(path))()
    result = untrained(experiment)
    exported = export_model(result, tmp_path / "exported")
    arrays = experiment.data.evaluations["test"].arrays
    inputs = {name: arrays[name][:9] for name in exported.record["functions"]["predict"]["inputs"]}
    assert "label" not in inputs
    expected = result.predict(inputs)
    for size in (1, 4, 9):
        assert_close(exported.predict({name: x[:size] for name, x in inputs.items()}), expected[:size])
    assert max(exported.check().values()) <= 1e-6


class Causal(nn.Module):
    """Reads each token and its two predecessors, and has no cache."""

    @nn.compact
    def __call__(self, tokens_BT):
        return nn.Dense(20)(nn.relu(nn.Conv(8, (3,), padding="CAUSAL")(nn.Embed(20, 8)(tokens_BT))))


TOKENS = np.random.default_rng(0).integers(3, 20, (4, 8)).astype(np.int32)
WRITERS = {
    "gpt2": task.language_model(GPT2(vocab_size=20, max_length=8, dim=8, num_layers=2, num_heads=2)),
    "scanned": task.language_model(
        GPT2(vocab_size=20, max_length=8, dim=8, num_layers=2, num_heads=2, is_scanned=True)
    ),
    "without a cache": task.language_model(Causal()),
    "recurrent": task.language_model(RecurrentLanguageModel(20, dim=8)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_language_model_writes_token_by_token(name, tmp_path):
    result = untrained(experiment_of(WRITERS[name], tokens=TOKENS))
    exported = export_model(result, tmp_path / "exported")
    expected_BTV = result.predict(TOKENS)
    assert_close(exported.predict(TOKENS), expected_BTV)
    mask = np.arange(5) < np.array([5, 3, 1, 5])[:, None]
    logits, cache = exported.prefill(TOKENS[:, :5], mask)
    lengths = mask.sum(1)
    rows = np.arange(4)
    for _ in range(3):
        assert_close(logits, expected_BTV[rows, lengths - 1], 3e-6)
        logits, cache = exported.decode(cache, TOKENS[rows, lengths])
        lengths = lengths + 1
    assert_close(logits, expected_BTV[rows, lengths - 1], 3e-6)
    with pytest.raises(UserError, match="8 tokens already"):
        exported.decode(cache, TOKENS[:, 0])
    with pytest.raises(UserError, match="3 tokens for 4 rows"):
        exported.decode(exported.prefill(TOKENS[:, :2])[1], TOKENS[:3, 0])
    with pytest.raises(UserError, match="9 tokens; the model reads from 1 to 8"):
        exported.prefill(np.zeros((1, 9), np.int32))


def test_a_sequence_to_sequence_model_writes_token_by_token(tmp_path, bare):
    learned = task.sequence_to_sequence(
        T5(vocab_size=20, dim=8, num_layers=1, num_heads=2), start_id=1, end_id=2, padding_id=0
    )
    source = np.where(np.arange(6) < np.array([6, 4, 2, 1])[:, None], TOKENS[:, :6], 0)
    result = untrained(experiment_of(learned, source=source, target=TOKENS))
    exported = export_model(result, tmp_path / "exported")
    expected_BTV = result.predict({"source": source, "target": TOKENS})
    logits, cache = exported.prefill(np.ones((4, 1), int), source=source, source_mask=source > 0)
    for k in range(7):
        assert_close(logits, expected_BTV[:, k], 3e-6)
        logits, cache = exported.decode(cache, TOKENS[:, k])
    with pytest.raises(UserError, match="got tokens, mask; expected mask, source, source_mask, tokens"):
        exported.prefill(np.ones((4, 1), int))
    done = bare(exported.folder, 1, "check.py")
    assert done.returncode == 0, done.stderr
    assert "decode" in done.stdout


def test_a_classifier_does_not_write(exported):
    with pytest.raises(UserError, match="does not write sequences; use predict"):
        exported.prefill(TOKENS)


def test_a_model_of_16_bits(tmp_path):
    result = untrained(experiment_of(computing_in(BFLOAT16, task.classification(Net()))))
    exported = export_model(result, tmp_path / "exported")
    assert exported.record["tolerance"]["cpu"] == 3e-2
    assert_close(exported.predict(IMAGES), result.predict(IMAGES), 3e-2)


def test_a_callback_is_refused_in_one_line(tmp_path):
    def apply(params, state, x, key):
        host = jax.pure_callback(
            lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims"
        )
        return host.reshape(x.shape[0], -1) @ params["w"], state

    model = task.Model(lambda key, x: {"params": {"w": jnp.ones((90, 3))}}, apply)
    with pytest.raises(UserError, match="cannot be exported for cpu, cuda, tpu.*without callbacks") as caught:
        export_model(untrained(experiment_of(task.classification(model))), tmp_path / "exported")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exported").exists()


def test_a_kernel_of_one_platform_is_exported_for_it_alone(tmp_path):
    from jax.experimental import pallas as pl

    def double(x_ref, y_ref):
        y_ref[...] = x_ref[...] * 2

    def apply(params, state, x, key):
        x = pl.pallas_call(double, jax.ShapeDtypeStruct(x.shape, x.dtype))(x)
        return x.reshape(x.shape[0], -1) @ params["w"], state

    model = task.Model(lambda key, x: {"params": {"w": jnp.ones((90, 3))}}, apply)
    result = untrained(experiment_of(task.classification(model)))
    with pytest.raises(UserError, match="for cpu, cuda, tpu .*interpret.*alone: --platforms tpu") as caught:
        export_model(result, tmp_path / "exported")
    assert "\n" not in str(caught.value)


def test_a_model_whose_outputs_depend_on_other_examples_is_refused(tmp_path):
    def apply(params, state, x, key):
        x = x.reshape(x.shape[0], -1)
        return (x - x.mean(0, keepdims=True)) @ params["w"], state

    model = task.Model(lambda key, x: {"params": {"w": jnp.ones((90, 3))}}, apply)
    with pytest.raises(UserError, match="a model must compute each example alone"):
        export_model(untrained(experiment_of(task.classification(model))), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_several_seeds_are_refused(result, tmp_path):
    seeds = Result(result.experiment, {"members": 2}, run=None, mesh=make_mesh({"data": 1}), variables={})
    with pytest.raises(UserError, match="export a run of one seed"):
        export_model(seeds, tmp_path / "exported")


def test_without_flatbuffers_there_is_one_line(result, exported, monkeypatch, tmp_path):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "flatbuffers" else found(name)
    )
    with pytest.raises(UserError, match=r"flatbuffers is not installed, .* pip install 'dl\[export\]'"):
        export_model(result, tmp_path / "exported")


EXPERIMENT = '''
import numpy as np
from dl import Experiment, PositiveInt, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.models.mlp import MLP

def experiment(width: PositiveInt = 4) -> Experiment:
    """Trains."""
    images = np.zeros((8, 3, 3, 1), np.uint8)
    return Experiment(
        data=ArraySplits("zeros", train=ArraySource({"image": images, "label": np.arange(8) % 2})),
        task=task.classification(MLP(hidden=(width,), num_classes=2)),
        tx=optimizers.adam(0.1),
        num_steps=1,
        batch_size=8,
    )
'''


def test_the_command(dl, tmp_path, capsys):
    code = tmp_path / "zeros.py"
    code.write_text(EXPERIMENT)
    function = find_experiment(str(code))
    run = tmp_path / "run"
    trained = package.train(package.Definition(function, {"width": 5}), folder=run)
    options = ("--experiment", str(code))
    capsys.readouterr()
    status, out, err = dl("export", str(run), *options)
    assert (status, err) == (0, "")
    assert out == f"wrote {run}-export: predict\n"
    images = np.arange(18, dtype=np.uint8).reshape(2, 3, 3, 1)
    model = load_exported(f"{run}-export")
    assert_close(model.predict(images), trained.predict(images))
    assert model.record["options"] == {"width": 5}
    assert model.record["command"] == f"python -m dl export {run} --out {run}-export"

    status, _, err = dl("export", str(run), *options)
    assert (status, err) == (2, f"error: {run}-export exists; choose another folder, or remove it\n")

    # From the exported folder alone, for another platform.
    shutil.rmtree(run)
    again = tmp_path / "again"
    assert dl("export", f"{run}-export", *options, "--out", str(again), "--platforms", "tpu")[0] == 0
    only = load_exported(again)
    assert only.record["platforms"] == ["tpu"]
    for name, array in model.variables.items():
        np.testing.assert_array_equal(only.variables[name], array)
    with pytest.raises(UserError, match="exported for tpu, and this process runs on cpu; .*--platforms cpu"):
        only.predict(images)

    status, _, err = dl("export", str(tmp_path), *options)
    assert (status, err.count("\n")) == (2, 1)
