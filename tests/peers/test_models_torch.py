"""Recurrent layers equal those of PyTorch with the same random weights, also on sequences of unequal lengths.

pip install -e '.[dev,peers]'.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dl.models.blocks.recurrence import GRU, LSTM, RNN, RecurrentStack

# Their warnings are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

B, T, F, D = 4, 7, 3, 5
LENGTHS = [7, 5, 2, 1]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs the extra 'peers'")


def params_of(torch_module, layer):
    """Returns the parameters of every layer of a PyTorch module, under our names."""
    weights = {name: tensor.detach().numpy() for name, tensor in torch_module.named_parameters()}
    params = {}
    for index in range(torch_module.num_layers):
        for suffix, ours in (("", ""), ("_reverse", "_backward")):
            end = f"l{index}{suffix}"
            if f"bias_ih_{end}" not in weights:
                continue
            bias, recurrent_bias = weights[f"bias_ih_{end}"], weights[f"bias_hh_{end}"]
            own = {"recurrent_kernel": weights[f"weight_hh_{end}"].T}
            if layer.has_recurrent_bias:
                own["recurrent_bias"] = recurrent_bias
            else:
                bias = bias + recurrent_bias
            own["input"] = {"kernel": weights[f"weight_ih_{end}"].T, "bias": bias}
            params[f"layer{index}{ours}"] = own
    return params


@pytest.mark.parametrize("is_bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("layer", [RNN, GRU, LSTM], ids=lambda layer: layer.__name__)
def test_layers_on_packed_sequences(torch, layer, is_bidirectional):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, layer.__name__)(
        F, D, num_layers=2, bidirectional=is_bidirectional, batch_first=True
    )
    x_BTF = np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)
    before_LBD = np.random.default_rng(1).normal(size=(2, 2 * (1 + is_bidirectional), B, D))
    before_LBD = before_LBD.astype(np.float32)[: layer.num_states]
    with torch.no_grad():
        packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x_BTF), LENGTHS, batch_first=True)
        state = tuple(torch.tensor(part) for part in before_LBD)
        outputs, last = theirs(packed, state if layer is LSTM else state[0])
        expected, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
    stack = RecurrentStack(layer, D, 2, is_bidirectional)
    variables = {"params": params_of(theirs, layer)}
    shapes = jax.eval_shape(stack.init, jax.random.key(0), x_BTF)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    segment_ids_BT = (np.arange(T) < np.array(LENGTHS)[:, None]).astype(np.int32)
    states = tuple(tuple(jnp.asarray(part) for part in parts) for parts in before_LBD.swapaxes(0, 1))
    outputs_BTD, after = jax.jit(stack.apply)(variables, x_BTF, segment_ids_BT, states)
    difference = np.abs(outputs_BTD - expected.numpy()).max()
    print(f"max |difference| {difference:.1e}")
    np.testing.assert_allclose(outputs_BTD, expected.numpy(), atol=1e-5, rtol=0)
    last = last if layer is LSTM else (last,)
    for number, part_LBD in enumerate(last):
        ours_LBD = np.stack([state[number] for state in after])
        np.testing.assert_allclose(ours_LBD, part_LBD.numpy(), atol=1e-5, rtol=0)
