"""oneDNN computes what XLA's own kernels compute, in the programs that it is meant for and in no others."""

import functools
import os
import re
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from dl.system.onednn import calls, computation, foreign, native_kernels, use_onednn

pytestmark = pytest.mark.skipif(not calls.is_available(), reason="this jaxlib has no kernels of oneDNN")
use_onednn()

TARGET = r"(__onednn\$|dl_onednn)"  # a call of jaxlib's kernels, or of oneDNN's own library
CALL = f'custom_call_target="{TARGET}'
HAS_LIBRARY = [pytest.param(True, id="library"), pytest.param(False, id="jaxlib")]
of_the_library = pytest.mark.parametrize("has_library", HAS_LIBRARY[:1], indirect=True)
SHAPES = {
    "3x3": ((4, 9, 8, 16), (3, 3, 16, 8), {}),
    "3x3 of one channel": ((4, 9, 8, 1), (3, 3, 1, 8), {}),
    "3x3 of eight channels": ((4, 9, 8, 8), (3, 3, 8, 8), {}),
    "1x1": ((4, 9, 8, 16), (1, 1, 16, 8), {}),
    "1x1 with padding": ((2, 9, 8, 16), (1, 1, 16, 8), {"padding": ((2, 2), (1, 0))}),
    "strided": ((5, 9, 8, 16), (3, 3, 16, 8), {"window_strides": (2, 2)}),
    "strided 1x1": ((4, 9, 8, 16), (1, 1, 16, 8), {"window_strides": (2, 2)}),
    "strided more than the kernel": (
        (2, 9, 8, 16),
        (2, 2, 16, 8),
        {"window_strides": (3, 4), "padding": "VALID"},
    ),
    "strided unevenly padded": (
        (4, 12, 13, 16),
        (3, 3, 16, 8),
        {"window_strides": (3, 2), "padding": ((2, 0), (0, 3))},
    ),
    "large kernel": ((2, 17, 16, 3), (7, 7, 3, 8), {"window_strides": (4, 4), "padding": "VALID"}),
    "patches": ((4, 13, 12, 3), (4, 4, 3, 8), {"window_strides": (4, 4), "padding": "VALID"}),
    "large, strided, dilated and padded": (
        (2, 17, 16, 16),
        (5, 4, 16, 8),
        {"window_strides": (2, 3), "rhs_dilation": (1, 2), "padding": ((2, 1), (0, 3))},
    ),
    "dilated": ((4, 12, 12, 16), (3, 3, 16, 8), {"rhs_dilation": (2, 3)}),
    "dilated and strided": (
        (4, 12, 12, 16),
        (3, 3, 16, 8),
        {"rhs_dilation": (2, 2), "window_strides": (2, 2)},
    ),
    "grouped": ((4, 12, 12, 8), (3, 3, 4, 8), {"feature_group_count": 2}),
    "depthwise": ((4, 12, 11, 16), (3, 3, 1, 16), {"feature_group_count": 16}),
    "depthwise strided": (
        (4, 12, 11, 16),
        (3, 3, 1, 16),
        {"feature_group_count": 16, "window_strides": (2, 2)},
    ),
    "depthwise multiplied": ((4, 12, 11, 8), (3, 3, 1, 16), {"feature_group_count": 8}),
    "text": ((4, 20, 16), (5, 16, 8), {"window_strides": (1,)}),
    "volume": ((2, 8, 7, 6, 4), (3, 3, 3, 4, 8), {"window_strides": (2, 1, 2)}),
    "many examples": ((64, 16, 16, 32), (3, 3, 32, 8), {}),
}


@pytest.fixture(autouse=True, params=HAS_LIBRARY)
def has_library(request, monkeypatch):
    """Every test runs with oneDNN's own library and without it."""
    if request.param and not foreign.is_available():
        pytest.skip("needs the extra cpu")
    if not request.param:
        monkeypatch.setattr(foreign, "is_available", lambda: False)
    return request.param


def convolution(inputs, kernel, **options):
    axes = "DHW"[-(inputs.ndim - 2) :]
    numbers = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    options = {"window_strides": (1,) * len(axes), "padding": "SAME", **options}
    return lax.conv_general_dilated(inputs, kernel, dimension_numbers=numbers, **options)


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_both(fn, *args):
    """Returns what a function computes with oneDNN and with XLA, and how often its program calls oneDNN."""
    program = jax.jit(lambda *args: fn(*args)).lower(*args).compile()

    def native(*args):
        with native_kernels():
            return fn(*args)

    reference = jax.jit(native).lower(*args).compile()
    assert not re.search(TARGET, reference.as_text())
    return program(*args), reference(*args), len(re.findall(CALL, program.as_text()))


@pytest.mark.parametrize("name", SHAPES)
def test_a_convolution_and_its_gradients_are_those_of_xla(name, has_library):
    inputs_shape, kernel_shape, options = SHAPES[name]
    convolve = functools.partial(convolution, **options)
    outputs = jax.eval_shape(convolve, jnp.zeros(inputs_shape), jnp.zeros(kernel_shape))
    cotangent = normal(outputs.shape, 2)

    def all_three(inputs, kernel):
        outputs, pullback = jax.vjp(convolve, inputs, kernel)
        return outputs, *pullback(cotangent)

    actual, expected, num_calls = with_both(all_three, normal(inputs_shape), normal(kernel_shape, 1))
    assert num_calls == 3 if has_library else num_calls > 0
    for one, other in zip(actual, expected, strict=True):
        scale = float(jnp.abs(other).max())
        chex.assert_trees_all_close(one / scale, other / scale, atol=1e-6)


def test_a_negative_padding_crops():
    """XLA's own kernel reads memory outside of the inputs, so that the reference is what is cropped first."""
    inputs, kernel = normal((4, 12, 11, 16)), normal((3, 3, 16, 8), 1)

    def gradient(inputs, padding):
        return jax.grad(lambda kernel: jnp.sum(jnp.sin(convolution(inputs, kernel, padding=padding))))(kernel)

    actual = jax.jit(functools.partial(gradient, padding=((-1, 1), (0, -2))))(inputs)
    expected = gradient(np.pad(inputs[:, 1:, :-2], ((0, 0), (0, 1), (0, 0), (0, 0))), "VALID")
    chex.assert_trees_all_close(actual, expected, atol=1e-4)


@pytest.mark.parametrize("left", [(128, 48), (8, 16, 48)])
def test_a_product_and_its_gradients_are_those_of_xla(left):
    cotangent = normal((*left[:-1], 96), 2)

    def all_three(left, right):
        outputs, pullback = jax.vjp(jnp.matmul, left, right)
        return outputs, *pullback(cotangent)

    actual, expected, num_calls = with_both(all_three, normal(left), normal((48, 96), 1))
    assert num_calls == 3
    chex.assert_trees_all_close(actual, expected, atol=2e-5)


def test_large_products_are_those_of_xla():
    left, right = normal((512, 256)), normal((256, 512), 1)

    def all_three(left, right):
        outputs, pullback = jax.vjp(jnp.matmul, left, right)
        return outputs, *pullback(outputs)

    actual, expected, num_calls = with_both(all_three, left, right)
    assert num_calls == 3
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-3)


@of_the_library
def test_a_program_of_the_library_can_be_stored_and_computes_the_same_bits(tmp_path):
    """The second process loads the program, whose product would be a call of jaxlib on its own."""
    program = f"""if True:
        import hashlib, sys
        import jax, jax.numpy as jnp, numpy as np
        from jax import lax
        from dl.system.onednn import use_onednn
        use_onednn()
        jax.config.update("jax_compilation_cache_dir", {str(tmp_path)!r})
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        hits = []
        jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
        random = np.random.default_rng(0)
        image, kernel, matrix = (
            random.normal(size=size).astype(np.float32)
            for size in ((8, 12, 12, 8), (3, 3, 8, 16), (2304, 64))
        )
        def loss(kernel, matrix):
            numbers = ("NHWC", "HWIO", "NHWC")
            outputs = lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=numbers)
            return jnp.sum(jnp.sin(outputs.reshape(8, -1) @ matrix))
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(kernel, matrix)
        print(hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in gradients)).hexdigest())
        print("/jax/compilation_cache/cache_hits" in hits)
    """
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    (first, is_first_hit), (second, is_second_hit) = (
        subprocess.check_output([sys.executable, "-c", program], env=environment, text=True).split()
        for _ in range(2)
    )
    assert (is_first_hit, is_second_hit) == ("False", "True")
    assert first == second


@of_the_library
def test_what_goes_wrong_in_the_library_is_an_error_of_the_program():
    call = jax.ffi.ffi_call(foreign.TARGET, jax.ShapeDtypeStruct((2,), jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match="ValueError: not enough values"):
        jax.block_until_ready(jax.jit(lambda one: call(one, one, computation="[]"))(np.zeros(2, np.float32)))


@of_the_library
def test_ctrl_c_during_a_computation_comes_when_it_is_done():
    """The main thread runs some programs, and handles signals between any two operations of Python."""
    program = """if True:
        import os, signal, time
        from dl.system.allocator import keep_memory
        keep_memory()
        import jax, numpy as np
        from dl.system.onednn import computation, use_onednn
        use_onednn()
        compute, asked = computation.Computation.run, []
        def interrupted(self, *addresses):
            if asked:
                asked.clear()
                os.kill(os.getpid(), signal.SIGINT)
            compute(self, *addresses)
        computation.Computation.run = interrupted
        multiply = jax.jit(lambda one, other: one @ other / 512)
        matrix = np.ones((512, 512), np.float32)
        multiply(matrix, matrix)
        for _ in range(40):
            asked.append(True)
            try:
                assert np.asarray(multiply(matrix, matrix)).min() == 1
                time.sleep(5)
            except KeyboardInterrupt:
                continue
            print("lost")
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("", "")


@of_the_library
def test_what_the_library_lacks_stays_as_it_is():
    layout = computation.dense((4, 3), (0, 1))
    wrong = computation.dense((5, 2), (0, 1))
    assert foreign.text_of("product", layout, wrong, layout) is None


def test_all_transformations_of_a_layer_go_on():
    inputs, kernel = normal((4, 8, 8, 16)), normal((3, 3, 16, 8), 1)

    def loss(kernel):
        return jnp.sum(jnp.sin(convolution(inputs, kernel) / 10))

    def transformed(kernel):
        return (
            jax.jvp(jax.grad(loss), (kernel,), (kernel,))[1],
            jax.vmap(jax.grad(loss))(jnp.stack([kernel, 2 * kernel])),
            jax.grad(jax.checkpoint(loss))(kernel),
            lax.scan(lambda k, _: (k - 0.1 * jax.grad(loss)(k), None), kernel, length=2)[0],
        )

    actual, expected, num_calls = with_both(transformed, kernel)
    assert num_calls > 0
    chex.assert_trees_all_close(actual, expected, atol=1e-5, rtol=1e-5)


def compiled_text(fn, *args, **options):
    return jax.jit(lambda *args: fn(*args), **options).lower(*args).compile().as_text()


def test_small_products_and_other_types_stay_with_xla():
    small, large = np.ones((4, 16), np.float32), np.ones((128, 128), np.float32)
    assert not re.search(TARGET, compiled_text(jnp.matmul, small, small.T))
    assert re.search(TARGET, compiled_text(jnp.matmul, large, large))
    assert not re.search(
        TARGET, compiled_text(jnp.matmul, large.astype(jnp.bfloat16), large.astype(jnp.bfloat16))
    )
    assert not re.search(
        TARGET, compiled_text(functools.partial(jnp.matmul, precision="highest"), large, large)
    )
    batches = np.ones((4, 64, 64), np.float32)
    assert not re.search(TARGET, compiled_text(jnp.matmul, batches, batches))


def test_programs_of_several_devices_stay_with_xla():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    inputs, kernel = normal((4, 8, 8, 16)), normal((3, 3, 16, 8), 1)
    in_shardings = (rows, NamedSharding(mesh, PartitionSpec()))
    assert not re.search(TARGET, compiled_text(convolution, inputs, kernel, in_shardings=in_shardings))
    depthwise = functools.partial(convolution, feature_group_count=16)
    text = compiled_text(depthwise, inputs, normal((3, 3, 1, 16)), in_shardings=in_shardings)
    assert "feature_group_count" not in text, "XLA's grouped convolution is slow on a CPU"


def test_exported_programs_run_without_onednn():
    inputs, kernel = normal((4, 8, 8, 16)), normal((3, 3, 16, 8), 1)
    batch = jax.export.symbolic_shape("batch, 8, 8, 16")
    shape = jax.ShapeDtypeStruct(batch, jnp.float32)
    exported = jax.export.export(
        jax.jit(lambda inputs: convolution(inputs, kernel)), platforms=["cpu", "tpu"]
    )(shape)
    assert not re.search(TARGET, exported.mlir_module())
    chex.assert_trees_all_close(exported.call(inputs), convolution(inputs, kernel), atol=1e-5)


def test_another_jaxlib_keeps_its_own_kernels(monkeypatch):
    monkeypatch.setattr(jaxlib, "__version__", "0.99.0")
    assert not calls.is_available()
    text = compiled_text(jnp.matmul, np.ones((256, 96), np.float32), np.ones((96, 96), np.float32))
    assert not re.search(TARGET, text)
    monkeypatch.setitem(sys.modules, "jax._src.interpreters", None)  # where another version may differ
    use_onednn.__wrapped__()


@pytest.mark.skipif(not calls.has_integer_products(), reason="this processor does not add products of 8 bits")
def test_integers_are_exact():
    random = np.random.default_rng(0)
    left, right = (random.integers(-127, 128, shape).astype(np.int8) for shape in ((64, 300), (300, 48)))
    in_integers = functools.partial(jnp.matmul, preferred_element_type=jnp.int32)
    product, expected, num_calls = with_both(in_integers, left, right)
    np.testing.assert_array_equal(product, left.astype(np.int64) @ right.astype(np.int64))
    np.testing.assert_array_equal(product, expected)
    images, kernel = (random.integers(-127, 128, s).astype(np.int8) for s in ((2, 9, 8, 16), (3, 3, 16, 8)))
    strided = functools.partial(convolution, window_strides=(2, 1), preferred_element_type=jnp.int32)
    outputs, expected, of_convolution = with_both(strided, images, kernel)
    np.testing.assert_array_equal(outputs, expected)
    np.testing.assert_array_equal(
        outputs, convolution(images.astype(np.float32), kernel.astype(np.float32), window_strides=(2, 1))
    )
    assert (num_calls, of_convolution, outputs.dtype) == (1, 1, jnp.int32)
    grouped = functools.partial(strided, feature_group_count=2)
    assert not re.search(TARGET, compiled_text(grouped, images, kernel[:, :, :8]))
    assert not re.search(TARGET, compiled_text(jnp.matmul, left, right)), (
        "sums of 8 bits are not those of oneDNN"
    )
