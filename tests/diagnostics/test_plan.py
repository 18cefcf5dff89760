"""Plans: what a training step takes on devices that need not be there."""

import dataclasses
import importlib
import importlib.util
import inspect
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dl import optimizers, task
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.diagnostics.plan import find_target, largest_batch, plan, read_prices
from dl.diagnostics.plan.measure import measure
from dl.diagnostics.plan.search import changes, largest_size
from dl.diagnostics.plan.step_plan import compile_step
from dl.diagnostics.plan.traffic import read_traffic
from dl.errors import UserError
from dl.experiment import Experiment
from dl.gradients import accumulated_gradient
from dl.models.cnn import CNN
from dl.models.gpt2 import GPT2
from dl.models.mlp import MLP
from dl.models.resnet import resnet50
from dl.runs.find import known_experiments
from dl.sharding import make_mesh
from dl.training.run_options import with_run_options

pytestmark = pytest.mark.slow  # each plan compiles a step

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the compiler of TPUs: pip install -e '.[tpu]'"
)


def images(size, channels=1, num_examples=64):
    return ArraySplits(
        "images",
        train=ArraySource(
            {
                "image": np.zeros((num_examples, size, size, channels), np.uint8),
                "label": np.zeros(num_examples, np.int32),
            }
        ),
    )


def experiment(model=None, *, data=None, learn=task.classification, **changes):
    model = MLP((512, 512), 10) if model is None else model
    how = {"tx": optimizers.adam(1e-3), "num_steps": 100, "batch_size": 64, **changes}
    return Experiment(data=data or images(8), task=learn(model), **how)


def with_memory(target, num_bytes):
    found = find_target(target)
    return dataclasses.replace(found, chip=dataclasses.replace(found.chip, memory=num_bytes))


@pytest.mark.parametrize(
    ("text", "key", "num_devices", "topology"),
    [
        ("tpu:v5e:4x4", "v5e", 16, "4x4"),
        ("TPU:v5p:4x4x4", "v5p", 64, "4x4x4"),
        ("tpu:v5e-256", "v5e", 256, "16x16"),
        ("tpu:v5p-512", "v5p", 256, "4x8x8"),  # its accelerator types count cores, two in each chip
        ("tpu:v6e-8", "v6e", 8, "2x4"),
        ("cuda:h100:8", "h100", 8, ""),
        ("cuda:h100", "h100", 1, ""),
        ("cpu", "cpu", 1, ""),
        ("cpu:8", "cpu", 8, ""),
    ],
)
def test_a_target_is_read(text, key, num_devices, topology):
    target = find_target(text)
    assert (target.key, target.num_devices, target.topology) == (key, num_devices, topology)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not understood"),
        ("v5e:4x4", "is not understood"),
        ("tpu", "is not understood"),
        ("tpu:v5e:4xx4", "is not understood"),
        ("cpu:0", "is not understood"),
        ("tpu:v9:4x4", "unknown hardware; choose one of v5e, v5p, v6e"),
        ("tpu:v5e-5", "lacks a known size"),
        ("tpu:v5p-7", "lacks a known size"),
        ("cuda:h100:9", "must have 1 to 8 GPUs"),
        ("cuda:h100:2x2", "must have 1 to 8 GPUs"),
    ],
)
def test_a_target_that_is_not_understood_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        find_target(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["tpu:v5e:2x2", "cuda:h100"])
def test_a_compiler_that_is_not_installed_is_one_line(target, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"which is not installed; pip install '\.\[(tpu|cuda)\]'"):
        plan(experiment(), target)


def test_memory_by_kind_is_what_the_compiler_and_the_shapes_state():
    planned, _, compiled = compile_step(experiment(), find_target("cpu:8"), "fsdp=8", read_prices())
    num_parameters = 64 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10
    assert planned.num_parameters == num_parameters
    memory, analysis = planned.memory, compiled.memory_analysis()
    small = 512 + 512 + 512 * 10 + 10  # leaves that are not worth splitting
    assert memory.parameters == 4 * ((num_parameters - small) // 8 + small)
    assert memory.optimizer == pytest.approx(2 * memory.parameters, rel=0.01)
    assert memory.batch == 64 * (8 * 8 + 4 + 4 + 1) // 8
    assert memory.data == 64 * (8 * 8 + 4)
    whole = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    assert memory.peak - memory.data == pytest.approx(whole, rel=0.05)
    assert planned.fits


def test_a_state_larger_than_the_memory_does_not_fit_and_is_not_compiled():
    huge = experiment(MLP((10**6, 10**6), 10))  # 12 TB with Adam: no machine has as much
    planned = plan(huge, "cpu:8", "fsdp=8")
    assert planned.fits is False
    assert planned.memory.state == pytest.approx(12 * 10**12 / 8, rel=0.01)
    assert planned.memory.temporaries is None
    assert "larger than the memory of a device" in planned.problem
    json.dumps(planned.to_json())


class _Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(64)(x)), None


class _Scanned(nn.Module):
    @nn.compact
    def __call__(self, image_BHWC, train=False):
        x = image_BHWC.reshape(image_BHWC.shape[0], -1)
        deep = nn.scan(_Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=16)
        return nn.Dense(10)(deep()(x, None)[0])


def test_the_products_of_a_scan_count_as_often_as_they_run():
    planned = plan(experiment(_Scanned()), with_memory("cpu", 1))
    forward = 2 * 64 * (16 * 64 * 64 + 64 * 10)
    first_layer = 2 * 64 * 64 * 64  # a scan computes the gradient of its input, also of the first layer's
    assert planned.model_flops == 3 * forward
    assert planned.flops in (3 * forward, 3 * forward - first_layer)


def traffic_of(fn, *arguments, devices=8):
    """Returns what a device moves in a function of arrays, each a pair of a shape and its partition."""
    mesh = make_mesh({"fsdp": devices})
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape, _ in arguments]
    shardings = tuple(NamedSharding(mesh, spec) for _, spec in arguments)
    return read_traffic(jax.jit(fn, in_shardings=shardings).lower(*shapes).compile().as_text(), devices)


def test_what_a_loop_exchanges_counts_once_for_each_iteration():
    def deep(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    traffic = traffic_of(
        deep, ((12, 64, 64), PartitionSpec(None, "fsdp")), ((1024, 64), PartitionSpec("fsdp"))
    )
    gathers = [c for c in traffic.collectives if c.kind == "all-gather"]
    assert [(c.group, c.size) for c in gathers] == [
        (8, 12 * 64 * 64 * 4)
    ]  # every layer once, on every device
    assert gathers[0].traffic == pytest.approx(12 * 64 * 64 * 4 * 7 / 8)
    assert traffic.num_unknown_loops == 0


def test_what_a_loop_moves_grows_with_its_length_and_not_with_its_square():
    def moved(length):
        def deep(weights, x):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

        return traffic_of(
            deep, ((length, 256, 256), PartitionSpec()), ((8, 256), PartitionSpec()), devices=1
        ).bytes_moved

    short, long = moved(4), moved(16)
    each = 256 * 256 * 4
    # A layer is read at least once. It is copied out of the stack at most once, which writes and reads it.
    assert 12 * each <= long - short <= 3 * 12 * each + 12 * 10 * 8 * 256 * 4
    assert long == pytest.approx(4 * short, rel=0.1)


def test_a_sum_over_devices_is_sent_twice_in_a_ring():
    traffic = traffic_of(lambda x: x.sum(0), ((64, 1024), PartitionSpec("fsdp")))
    [reduced] = traffic.collectives
    assert (reduced.kind, reduced.group, reduced.count, reduced.size) == ("all-reduce", 8, 1, 4096)
    assert reduced.traffic == 2 * 4096 * 7 / 8


def test_notations_of_tpu_and_gpu_programs_are_read():
    text = """HloModule test, is_scheduled=true

%all-reduce-scatter (input: f32[1024,1024]) -> f32[128,1024] {
  %input = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  %all-reduce.5 = f32[1024,1024]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3},{4,5,6,7}}
  %zero = s32[] constant(0)
  ROOT %slice = f32[128,1024]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.5, %zero, %zero)
}

%condition (p: (s32[], f32[1024,1024])) -> pred[] {
  %p = (s32[], f32[1024,1024]) parameter(0)
  %limit = s32[]{:T(128)} constant(12)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (q: (s32[], f32[1024,1024])) -> (s32[], f32[1024,1024]) {
  %q = (s32[], f32[1024,1024]) parameter(0)
  %x = f32[1024,1024]{1,0:T(8,128)} get-tuple-element(%q), index=1
  %fast = bf16[1,1024,1024]{2,1,0:T(8,128)S(1)} all-gather(%x), replica_groups=mesh['a'=8,'b'=1] {'a'}
  %scattered = f32[128,1024]{1,0:T(8,128)S(1)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  %start = (f32[1024,1024]{1,0}, f32[8192,1024]{1,0}) all-gather-start(%x), replica_groups=[1,8]<=[8]
  %done = f32[8192,1024]{1,0} all-gather-done(%start)
  ROOT %next = (s32[], /*index=1*/f32[1024,1024]) tuple(%i, %x)
}

ENTRY %main (a: f32[1024,1024]) -> f32[1024,1024] {
  %a = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  %init = (s32[], f32[1024,1024]) tuple(%a, %a)
  %loop = (s32[], f32[1024,1024]) while(%init), condition=%condition, body=%body
  ROOT %out = f32[1024,1024] get-tuple-element(%loop), index=1
}
"""
    traffic = read_traffic(text, 8)
    mib = 2**20
    assert {(c.kind, c.group, c.count, c.size) for c in traffic.collectives} == {
        ("all-gather", 8, 24, 12 * (2 * mib + 32 * mib)),
        ("reduce-scatter", 4, 12, 12 * 4 * mib),
    }
    # Each iteration reads x (4 MiB) three times and writes 32 MiB; what lies in S(1) is not main memory.
    assert traffic.bytes_moved == 12 * (3 * 4 + 32) * mib


# FLOPs of a step against closed forms, within 5 %. Nothing is compiled: the devices have no memory.


def test_flops_of_a_convolutional_network():
    network = CNN(channels=(32,), hidden=(128,), num_classes=10)
    planned = plan(experiment(network, data=images(28), batch_size=32), with_memory("cpu", 1))
    convolution, dense = 2 * 26 * 26 * 9 * 32, 2 * (26 * 26 * 32 * 128 + 128 * 10)
    assert planned.num_parameters == 2_770_634
    assert planned.model_flops == pytest.approx(32 * 3 * (convolution + dense), rel=0.05)
    # The gradient of the image is not computed.
    assert planned.flops == pytest.approx(32 * (2 * convolution + 3 * dense), rel=0.05)


def test_flops_of_resnet50():
    planned = plan(experiment(resnet50(1000), data=images(224, 3, 8), batch_size=8), with_memory("cpu", 1))
    stem = 2 * 112 * 112 * 7 * 7 * 3 * 64
    whole = 2 * 4.09e9  # multiply-adds as torchvision states them
    assert planned.model_flops == pytest.approx(8 * 3 * whole, rel=0.05)
    assert planned.flops == pytest.approx(8 * (3 * whole - stem), rel=0.05)


@pytest.mark.parametrize("remat", ["none", "dots", "layers"])
def test_flops_of_gpt2_small(remat):
    length, batch = 1024, 4
    tokens = ArraySource({name: np.zeros((8, length), np.int32) for name in ("tokens", "targets")})
    model = GPT2(is_scanned=True, remat=remat)
    made = experiment(
        model, data=ArraySplits("tokens", train=tokens), learn=task.language_model, batch_size=batch
    )
    planned = plan(made, with_memory("cpu", 1))
    products = 12 * 12 * 768**2  # the matrices of twelve layers
    head = 50_257 * 768
    attention = 12 * 2 * length * 768 * 5 / 8  # four blocks of queries see 5/8 of all pairs
    forward = 2 * batch * length * (products + head + attention)
    assert planned.num_parameters == 124_439_808
    assert planned.model_flops == pytest.approx(3 * forward, rel=0.05)
    # The last product of a layer, 4 of its 12 D², is not needed again.
    again = (
        {"none": 0, "dots": attention, "layers": products * 8 / 12 + attention}[remat] * 2 * batch * length
    )
    assert planned.flops == pytest.approx(3 * forward + again, rel=0.05)


def test_the_largest_batch_fits_and_the_next_does_not():
    made = experiment(data=images(32), batch_size=64)
    fitting = plan(dataclasses.replace(made, batch_size=640), "cpu:8", "fsdp=8").memory.peak
    target = with_memory("cpu:8", fitting)
    found = largest_batch(made, target, "fsdp=8")
    assert found.plan.fits
    assert 512 <= found.plan.batch_size < 1024  # the limit, and not that of the search
    assert found.predicted == pytest.approx(found.plan.memory.peak, rel=0.05)
    larger = dataclasses.replace(made, batch_size=int(found.plan.batch_size * 1.2) // 8 * 8)
    assert plan(larger, target, "fsdp=8").fits is False


def test_no_batch_fits_where_the_state_does_not():
    assert largest_batch(experiment(), with_memory("cpu:8", 10_000)) is None


def test_micro_batches_divide_the_largest_batch():
    made = experiment(grad_fn=accumulated_gradient(4), batch_size=64)
    found = largest_batch(made, with_memory("cpu:2", 8_000_000))
    assert found.plan.batch_size % 4 == 0


def test_a_step_that_does_not_fit_fits_with_another_mesh_or_a_smaller_batch():
    made = experiment()
    state = plan(made, "cpu:8").memory.state
    [change] = changes(made, with_memory("cpu:8", state))
    assert (change.text, change.plan.fits) == ("--mesh fsdp=8", True)
    whole = plan(made, "cpu:8", "fsdp=8")
    [change] = changes(made, with_memory("cpu:8", whole.memory.peak - 1), "fsdp=8")
    assert change.text.startswith("--batch-size ")
    assert change.plan.fits
    assert change.plan.batch_size < 64


def test_the_largest_model_of_a_ladder_is_found():
    widths = ("16", "512", "4096", "100000")
    found = largest_size(
        lambda width: experiment(MLP((int(width),), 10)), widths, with_memory("cpu", 5_000_000)
    )
    assert found.text == "--size 512"
    assert largest_size(lambda width: experiment(), widths, with_memory("cpu", 1)) is None


@pytest.mark.parametrize(
    ("mesh", "batch_size", "message"),
    [
        ("data=4", 64, "mesh data=4 has 4 devices, and the target cpu:8 has 8"),
        ("data=16", 64, "choose sizes whose product is 8"),
        (None, 60, "batch_size=60 does not divide over the 8 parts"),
    ],
)
def test_a_mesh_or_a_batch_that_does_not_divide_is_one_line(mesh, batch_size, message):
    with pytest.raises(UserError, match=message):
        plan(experiment(batch_size=batch_size), "cpu:8", mesh)


def test_own_prices_replace_the_table(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text('date = 2026-01-02\ncurrency = "EUR"\n[per_hour]\ncpu = 0.5\n')
    prices = read_prices(path)
    assert (prices.date, prices.currency) == ("2026-01-02", "EUR")
    assert plan(experiment(), with_memory("cpu:8", 1), prices=prices).price_per_hour == 4.0
    assert plan(experiment(), with_memory("cpu:8", 1)).price_per_hour is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("date = 1", "lack currency"),
        ("per_hour", "are not TOML"),
        ('date = 1\ncurrency = "USD"\nper_hour = 3', "must be a table"),
        ('date = 1\ncurrency = "USD"\n[per_hour]\nv5e = "1"', "must be a number of at least 0"),
        ('date = 1\ncurrency = "USD"\n[per_hour]\nv5e = -1', "must be a number of at least 0"),
    ],
)
def test_prices_of_another_form_are_one_line(text, message, tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_prices(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_prices(tmp_path / "none.toml")


def test_what_a_step_takes_here_is_compared_with_its_plan():
    planned, measured = measure(experiment(MLP((2048, 2048), 10), data=images(32)), "cpu:8", "data=8")
    assert measured.predicted == planned.memory.peak - planned.memory.data
    assert measured.peak > planned.memory.state  # the state is held at least once
    assert measured.seconds > 0
    with pytest.raises(UserError, match="is not here"):
        measure(experiment(), "cuda:h100")


def test_the_command_prints_the_plan(dl):
    status, out, err = dl("plan", "mnist_mlp", "--dataset", "digits", "--target", "cpu:8", "--mesh", "fsdp=8")
    assert (status, err) == (0, "")
    for words in ("devices", "8 x CPU", "fits", "parameters", "activations and temporaries", "collectives"):
        assert words in out


def test_the_command_prints_the_plan_as_json(dl):
    status, out, _ = dl("plan", "mnist_mlp", "--dataset", "digits", "--target", "cpu:8", "--json")
    record = json.loads(out)
    assert status == 0
    assert record["fits"] is True
    assert record["memory"]["parameters"] == 4 * record["num_parameters"]


def test_the_command_says_what_is_missing(dl):
    assert dl("plan", "mnist_mlp")[::2] == (
        2,
        "error: plan needs --target, such as --target tpu:v5e:4x4, cuda:h100:8 or cpu:8\n",
    )


def tiny(name):
    """Returns an experiment at a small size, without data that are not there."""
    fn = importlib.import_module(f"experiments.{name}").experiment
    parameters = inspect.signature(fn).parameters
    small = {"dataset": "digits", "backbone": "random", "smoke": True}
    small |= {"dim": 32, "num_layers": 1, "num_heads": 2, "sequence_length": 16, "max_length": 16}
    options = {option: value for option, value in small.items() if option in parameters}
    if "tokenizer" in parameters or name == "finetune_gpt":
        options["dataset"] = "auto"
    kind = str(getattr(parameters.get("tokenizer"), "default", "")).partition(":")[0]
    if kind in ("bpe", "wordpiece"):
        options["tokenizer"] = f"{kind}:400"
    return dataclasses.replace(fn(**options), batch_size=16)


@needs_libtpu
@pytest.mark.parametrize("name", sorted(known_experiments()))
def test_every_experiment_compiles_for_a_tpu(name):
    planned = plan(tiny(name), "tpu:v5e:2x4")
    assert planned.fits
    assert planned.memory.temporaries is not None
    assert planned.roofline.seconds > 0
    assert any(c.kind == "all-reduce" for c in planned.collectives)


@needs_libtpu
def test_a_step_that_the_compiler_of_a_tpu_refuses_does_not_fit():
    wide = experiment(_Wide(), data=images(32, num_examples=8), batch_size=8)
    planned = plan(wide, "tpu:v5e:2x2", "data=4")
    assert planned.fits is False
    assert planned.memory.peak > planned.memory.limit
    assert "HBM" in planned.problem or "hbm" in planned.problem


class _Wide(nn.Module):
    """Few parameters, and activations of 40 GB for an example."""

    @nn.compact
    def __call__(self, image, train=False):
        x = jnp.tile(image.reshape(len(image), 1, 1, -1), (1, 1000, 10_000, 1))
        return nn.Dense(10)(jnp.sort(x, axis=-2).max((1, 2)))


@needs_libtpu
def test_mixed_precision_changes_the_plan():
    made = with_run_options(experiment(), {"precision": "bfloat16"})
    for _ in range(2):  # the second finds the first in the cache of compiled programs
        assert plan(made, "tpu:v5e:2x2").dtype == "bfloat16"
