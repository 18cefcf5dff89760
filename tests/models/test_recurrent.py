"""Recurrent layers against NumPy, and what padding, packing, caches and dropout may not change."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

import dl
from dl import task
from dl.models.blocks.recurrence import GRU, LSTM, RNN, RecurrentStack, starts
from dl.models.recurrent import (
    RecurrentClassifier,
    RecurrentLanguageModel,
    RecurrentRegressor,
)
from dl.runs.console import Console
from experiments import rnn_adding
from tests.helpers import quick_jit

B, T, F, D, V = 3, 5, 2, 4, 7
LENGTHS = np.array([5, 2, 3])
SEGMENT_IDS = (np.arange(T) < LENGTHS[:, None]).astype(np.int32)
X_BTF = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
LAYERS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


def random_variables(model, inputs):
    """Returns variables that are random everywhere: no bias is zero and no kernel is orthogonal."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return jax.tree.map(lambda leaf: np.float32(random.normal(size=leaf.shape) * 0.7), shapes)


def step_of(kind, x, state, params):
    """One step of one row in float64, from the equations of the papers, gate by gate."""
    h = state[0]
    kernels = np.split(np.float64(params["input"]["kernel"]), {"rnn": 1, "gru": 3, "lstm": 4}[kind], -1)
    biases = np.split(np.float64(params["input"]["bias"]), len(kernels))
    recurrent = np.split(np.float64(params["recurrent_kernel"]), len(kernels), -1)
    a = [x @ w + b for w, b in zip(kernels, biases, strict=True)]
    u = [h @ w for w in recurrent]
    if kind == "rnn":
        return (np.tanh(a[0] + u[0]),)
    if kind == "lstm":
        i, f, o = (expit(a[k] + u[k]) for k in (0, 1, 3))
        c = f * state[1] + i * np.tanh(a[2] + u[2])
        return o * np.tanh(c), c
    r_bias, z_bias, n_bias = np.split(np.float64(params["recurrent_bias"]), 3)
    r, z = expit(a[0] + u[0] + r_bias), expit(a[1] + u[1] + z_bias)
    n = np.tanh(a[2] + r * (u[2] + n_bias))
    return ((1 - z) * n + z * h,)


def read_alone(kind, x_TF, params, is_backward=False):
    """The outputs and the last state of one sequence without padding, in a Python loop."""
    state = (np.zeros(D),) * (1 + (kind == "lstm"))
    outputs = np.zeros((len(x_TF), D))
    for t in range(len(x_TF))[:: -1 if is_backward else 1]:
        state = step_of(kind, np.float64(x_TF[t]), state, params)
        outputs[t] = state[0]
    return outputs, state


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_a_stack_in_both_directions_is_a_loop_in_numpy_over_each_sequence_alone(kind):
    stack = RecurrentStack(LAYERS[kind], D, num_layers=2, is_bidirectional=True)
    variables = random_variables(stack, X_BTF)
    outputs_BTD, states = quick_jit(stack.apply)(variables, X_BTF, SEGMENT_IDS)
    for row, length in enumerate(LENGTHS):
        x = X_BTF[row, :length]
        expected_states = []
        for layer in ("layer0", "layer1"):
            both = [
                read_alone(kind, x, variables["params"][f"{layer}{suffix}"], suffix != "")
                for suffix in ("", "_backward")
            ]
            x = np.concatenate([outputs for outputs, _ in both], -1)
            expected_states += [state for _, state in both]
        np.testing.assert_allclose(outputs_BTD[row, :length], x, atol=1e-5)
        assert not np.any(outputs_BTD[row, length:])
        actual = jax.tree.map(lambda part, row=row: part[row], states)
        chex.assert_trees_all_close(actual, tuple(map(tuple, expected_states)), atol=1e-5)


def test_the_number_of_parameters():
    shapes = {kind: jax.eval_shape(layer(D).init, jax.random.key(0), X_BTF) for kind, layer in LAYERS.items()}
    counts = {kind: sum(leaf.size for leaf in jax.tree.leaves(tree)) for kind, tree in shapes.items()}
    gate = D * (F + D + 1)
    assert counts == {"rnn": gate, "gru": 3 * (gate + D), "lstm": 4 * gate}


@pytest.mark.parametrize("forget_bias", [0.0, 1.0])
def test_a_new_lstm_has_orthogonal_gates_and_a_bias_of_the_forget_gate(forget_bias):
    layer = LSTM(D) if forget_bias else LSTM(D, forget_bias=0.0)
    params = quick_jit(layer.init)(jax.random.key(0), X_BTF)["params"]
    np.testing.assert_array_equal(params["input"]["bias"], np.repeat([0, forget_bias, 0, 0], D))
    for kernel in np.split(np.asarray(params["recurrent_kernel"]), 4, -1):
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(D), atol=1e-5)


def test_starts_are_where_another_sequence_follows_one():
    ids = np.array([[1, 1, 0, 1, 2], [0, 3, 3, 0, 5], [0, 0, 0, 0, 0], [1, 2, 3, 3, 0]])
    forward = [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0] * 5, [0, 1, 1, 0, 0]]
    backward = [[0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0] * 5, [1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(starts(ids), forward)
    np.testing.assert_array_equal(starts(ids, is_backward=True), backward)


# A language model.

MODEL = RecurrentLanguageModel(V, GRU, dim=D, num_layers=2, embedding_dim=3)
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))


@pytest.fixture(scope="module")
def variables():
    return random_variables(MODEL, TOKENS)


@pytest.fixture(scope="module")
def logits(variables):
    return np.asarray(quick_jit(MODEL.apply)(variables, TOKENS))


def test_logits_do_not_depend_on_later_tokens(variables, logits):
    changed = TOKENS.copy()
    changed[:, 3:] = (changed[:, 3:] + 1) % V
    others = quick_jit(MODEL.apply)(variables, changed)
    np.testing.assert_array_equal(others[:, :3], logits[:, :3])
    assert np.abs(others[:, 3:] - logits[:, 3:]).min(-1).min() > 0


def test_packed_sequences_do_not_see_each_other(variables, logits):
    """Rows of one segment each, and of two or three, with padding in between."""
    packed = np.array([[*TOKENS[0, :2], 0, *TOKENS[1, :3], 0], [0, 0, *TOKENS[2, :4], TOKENS[0, 0]]])
    ids = np.array([[1, 1, 0, 2, 2, 2, 0], [0, 0, 1, 1, 1, 1, 2]])
    packed_logits = quick_jit(MODEL.apply)(variables, packed, ids)
    np.testing.assert_allclose(packed_logits[0, :2], logits[0, :2], atol=1e-6)
    np.testing.assert_allclose(packed_logits[0, 3:6], logits[1, :3], atol=1e-6)
    np.testing.assert_allclose(packed_logits[1, 2:6], logits[2, :4], atol=1e-6)
    np.testing.assert_allclose(packed_logits[1, 6], logits[0, 0], atol=1e-6)


def test_a_decoder_writes_what_whole_sequences_would_say(variables, logits):
    decoder = task.language_model(MODEL).decoder
    extend = quick_jit(decoder.extend)
    cache = decoder.empty(B, T)
    # The second row has no token in the second call; padding lies before and after tokens.
    tokens = np.array([[TOKENS[0, 0], TOKENS[0, 1], 0], [0, TOKENS[1, 0], 0], [*TOKENS[2, :3]]])
    mask = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 1]], bool)
    first, cache = extend(variables, cache, tokens, mask)
    np.testing.assert_allclose(first, logits[np.arange(B), [1, 0, 2]], atol=1e-6)
    tokens = np.array([[0, 0, TOKENS[0, 2]], [0, 0, 0], [TOKENS[2, 3], TOKENS[2, 4], 0]])
    mask = np.array([[0, 0, 1], [0, 0, 0], [1, 1, 0]], bool)
    second, cache = extend(variables, cache, tokens, mask)
    np.testing.assert_allclose(second, logits[np.arange(B), [2, 0, 4]], atol=1e-6)


def test_a_tied_head_has_no_kernel_of_its_own():
    tied = RecurrentLanguageModel(V, dim=D, is_tied=True)
    params = jax.eval_shape(tied.init, jax.random.key(0), TOKENS)["params"]
    assert sorted(params) == ["layers", "token_embedding"]
    with pytest.raises(ValueError, match="embedding_dim=3 differs from dim=4"):
        RecurrentLanguageModel(V, dim=D, embedding_dim=3, is_tied=True).init(jax.random.key(0), TOKENS)


# Classifiers and regressors.


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["final", "max", "mean"])
def test_a_classifier_does_not_see_padding(pooling):
    model = RecurrentClassifier(
        num_classes=2, vocab_size=V, embedding_dim=3, dim=D, is_bidirectional=True, pooling=pooling
    )
    variables = random_variables(model, TOKENS)
    padded = np.where(SEGMENT_IDS, TOKENS, V - 1)
    apply = quick_jit(model.apply)
    logits = apply(variables, padded, SEGMENT_IDS)
    for row, length in enumerate(LENGTHS[:2]):
        alone = quick_jit(model.apply)(variables, TOKENS[row : row + 1, :length])
        np.testing.assert_allclose(logits[row], alone[0], atol=1e-5)

    bias = variables["params"]["head"]["bias"]
    np.testing.assert_allclose(apply(variables, TOKENS, 0 * SEGMENT_IDS), np.tile(bias, (B, 1)), atol=1e-6)


def test_a_regressor_reads_vectors_and_has_no_gradient_at_padding():
    model = RecurrentRegressor(GRU, D, num_outputs=1, is_bidirectional=True, pooling="mean")
    variables = random_variables(model, X_BTF)
    assert jax.eval_shape(model.apply, variables, X_BTF).shape == (B, 1)
    gradient = quick_jit(jax.grad(lambda x_BTF: model.apply(variables, x_BTF, SEGMENT_IDS).sum()))(X_BTF)
    np.testing.assert_array_equal(np.any(gradient, axis=-1), SEGMENT_IDS > 0)


# Dropout.


def outputs_of(module, params, x_BTF):
    """The outputs in training and in evaluation."""
    rngs = {"dropout": jax.random.key(0)}
    train = quick_jit(functools.partial(module.apply, train=True, rngs=rngs))
    return [np.asarray(apply({"params": params}, x_BTF)[0]) for apply in (train, quick_jit(module.apply))]


def test_one_mask_a_row_drops_inputs_at_all_steps():
    """A layer whose h is a one-to-one function of its input shows which features were dropped."""
    stack = RecurrentStack(RNN, F, dropout=0.5)
    x_BTF = jnp.full((64, T, F), 0.1)
    params = {
        "input": {"kernel": jnp.eye(F), "bias": jnp.zeros(F)},
        "recurrent_kernel": jnp.zeros((F, F)),
    }
    outputs, plain = outputs_of(stack, {"layer0": params}, x_BTF)
    np.testing.assert_allclose(np.unique(outputs), [0, np.tanh(0.2)], atol=1e-6)
    np.testing.assert_array_equal(outputs, np.broadcast_to(outputs[:, :1], outputs.shape))
    share = np.mean(outputs[:, 0] == 0)  # of 128 masks, standard deviation 0.044
    assert 0.3 < share < 0.7
    assert len(np.unique(outputs[:, 0], axis=0)) == 4  # the rows have different masks
    np.testing.assert_allclose(plain, np.full(x_BTF.shape, np.tanh(0.1)), atol=1e-6)


def test_one_mask_a_row_drops_recurrent_connections_at_all_steps():
    """With U = I and no input but at the first step, h_t = tanh(2 h_{t-1}), or 0 where it is dropped."""
    layer = RNN(F, recurrent_dropout=0.5)
    x_BTF = jnp.zeros((64, T, F)).at[:, 0].set(0.1)
    params = {"input": {"kernel": jnp.eye(F), "bias": jnp.zeros(F)}, "recurrent_kernel": jnp.eye(F)}
    outputs, plain = outputs_of(layer, params, x_BTF)
    kept = [np.tanh(0.1)]
    for _ in range(T - 1):
        kept.append(np.tanh(2 * kept[-1]))
    is_kept_B1F = outputs[:, 1:2] > 0
    expected = np.where(is_kept_B1F, np.array(kept)[:, None], [[kept[0]]] + [[0]] * (T - 1))
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    assert 0.3 < is_kept_B1F.mean() < 0.7
    assert len(np.unique(is_kept_B1F, axis=0)) == 4
    undropped = np.array([0.1])
    for t in range(T):
        undropped = np.tanh(undropped)
        np.testing.assert_allclose(plain[:, t], np.broadcast_to(undropped, (64, F)), atol=1e-6)


@pytest.mark.slow
def test_an_lstm_solves_the_adding_problem(mesh1):
    """Who predicts the mean has a squared error of 0.167, and who forgets one of the numbers 0.083."""
    result = dl.train(rnn_adding.experiment(num_steps=400), mesh=mesh1, console=Console(is_quiet=True))
    assert result.metrics["test"]["loss"] < 0.02
