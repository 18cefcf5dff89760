"""Recurrent layers over whole sequences: Elman's, GRU and LSTM, and stacks of them in one or both directions.

The inputs of all steps are projected in one matrix product before the loop over the steps, which then has
only the product with the previous state.

Shapes: B batch, T steps, F input features, D state dim, G = gates · D.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dl.models.dropout import Dropout

State = tuple[jax.Array, ...]
"""What a layer remembers, each of shape (B, D): the output h of the last step, then c if there is one."""


class Recurrence(nn.Module):
    """A recurrent layer in one direction. `RNN`, `GRU` and `LSTM` state the step.

    Its parameters are `input/{kernel,bias}` (F × G and G) and `recurrent_kernel` (D × G). The gates lie in
    the order of PyTorch.

    Dropout of the recurrent connection drops values of h before the product with `recurrent_kernel`, with
    one mask for all steps of a row and all gates (Gal & Ghahramani 2016, eq. 7, tied weights).

    Attributes:
      dim: state dim, D.
      is_backward: whether the steps go from the last one to the first.
      recurrent_dropout: probability that a value of h is dropped in training.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    dim: int
    is_backward: bool = False
    recurrent_dropout: float = 0.0
    dtype: Any = None

    num_gates: ClassVar[int] = 1
    num_states: ClassVar[int] = 1
    has_recurrent_bias: ClassVar[bool] = False

    @nn.nowrap
    def step(self, state: State, input_BG: jax.Array, recurrent_BG: jax.Array) -> State:
        """Returns the next state from the projections of the input and of the previous h."""
        raise NotImplementedError

    @nn.nowrap
    def bias_init(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Returns the initial bias of `input`."""
        return jnp.zeros(shape, dtype)

    @nn.nowrap
    def empty_state(self, batch_size: int, dtype: Any = jnp.float32) -> State:
        """Returns the state before the first step: zeros."""
        return tuple(jnp.zeros((batch_size, self.dim), dtype) for _ in range(self.num_states))

    @nn.compact
    def __call__(
        self,
        x_BTF: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        state: State | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, State]:
        """Returns the outputs h of all steps, shape B × T × D, and the state after the last step.

        Args:
          x_BTF: inputs.
          segment_ids_BT: number of the sequence that each step belongs to; 0 is padding. Padding, wherever it
            lies, does not change the state, and its outputs are zero. A sequence that follows another one in
            its row starts with an empty state. `None` means one sequence without padding in each row.
          state: state before the first step. `None` means zeros.
          train: whether dropout is on.
        """
        num_features = self.num_gates * self.dim
        project = nn.Dense(num_features, bias_init=self.bias_init, dtype=self.dtype, name="input")
        shape = (self.dim, num_features)
        kernel_DG = self.param("recurrent_kernel", self._orthogonal_gates, shape, jnp.float32)
        input_BTG, kernel_DG = nn.dtypes.promote_dtype(project(x_BTF), kernel_DG, dtype=self.dtype)
        bias_1G: jax.Array | float = 0.0
        if self.has_recurrent_bias:
            bias_G = self.param("recurrent_bias", nn.initializers.zeros, (num_features,), jnp.float32)
            bias_1G = bias_G[None].astype(input_BTG.dtype)
        empty = self.empty_state(len(x_BTF), input_BTG.dtype)
        drop = Dropout(self.recurrent_dropout, deterministic=not train)
        scale_BD = drop(jnp.ones_like(empty[0])) if train and self.recurrent_dropout > 0 else None

        def advance(state: State, input_BG: jax.Array) -> State:
            h_BD = state[0] if scale_BD is None else state[0] * scale_BD
            return self.step(state, input_BG, h_BD @ kernel_DG + bias_1G)

        def advance_marked(state: State, inputs: Any) -> tuple[State, jax.Array]:
            input_BG, is_start_B1, is_valid_B1 = inputs
            before = tuple(jnp.where(is_start_B1, 0, part) for part in state)
            after = advance(before, input_BG)
            state = tuple(jnp.where(is_valid_B1, *parts) for parts in zip(after, state, strict=True))
            return state, jnp.where(is_valid_B1, state[0], 0)

        def advance_plain(state: State, input_BG: jax.Array) -> tuple[State, jax.Array]:
            state = advance(state, input_BG)
            return state, state[0]

        input_TBG = input_BTG.swapaxes(0, 1)
        initial = empty if state is None else tuple(part.astype(input_BTG.dtype) for part in state)
        if segment_ids_BT is None:
            last, h_TBD = jax.lax.scan(advance_plain, initial, input_TBG, reverse=self.is_backward)
        else:
            marks = starts(segment_ids_BT, self.is_backward), segment_ids_BT > 0
            inputs = input_TBG, *(mark_BT.T[..., None] for mark_BT in marks)
            last, h_TBD = jax.lax.scan(advance_marked, initial, inputs, reverse=self.is_backward)
        return h_TBD.swapaxes(0, 1), last

    @nn.nowrap
    def _orthogonal_gates(self, key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
        keys = jax.random.split(key, self.num_gates)
        square = (self.dim, self.dim)
        return jnp.concatenate([nn.initializers.orthogonal()(key, square, dtype) for key in keys], -1)


class RNN(Recurrence):
    """The simple recurrent layer: h' = tanh(W x + b + U h) (Elman 1990)."""

    @nn.nowrap
    def step(self, state: State, input_BG: jax.Array, recurrent_BG: jax.Array) -> State:
        return (jnp.tanh(input_BG + recurrent_BG),)


class GRU(Recurrence):
    """The gated recurrent unit (Cho et al. 2014), with the reset gate after the product, as in PyTorch.

    r = σ(W_r x + b_r + U_r h + c_r), z = σ(W_z x + b_z + U_z h + c_z),
    n = tanh(W_n x + b_n + r (U_n h + c_n)), h' = (1 - z) n + z h. The gates lie in the order r, z, n, and
    `recurrent_bias` is c.
    """

    num_gates: ClassVar[int] = 3
    has_recurrent_bias: ClassVar[bool] = True

    @nn.nowrap
    def step(self, state: State, input_BG: jax.Array, recurrent_BG: jax.Array) -> State:
        x_r, x_z, x_n = jnp.split(input_BG, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(recurrent_BG, 3, axis=-1)
        n_BD = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
        z_BD = jax.nn.sigmoid(x_z + h_z)
        return ((1 - z_BD) * n_BD + z_BD * state[0],)


class LSTM(Recurrence):
    """Long short-term memory with a forget gate (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    i, f, o = σ(W x + b + U h) and g = tanh(W x + b + U h), each with its own weights, c' = f c + i g,
    h' = o tanh(c'). The gates lie in the order i, f, g, o. The state is (h, c).

    Attributes:
      forget_bias: initial bias of the forget gate f. With 1, a new layer keeps its memory for long
        (Jozefowicz et al. 2015, section 2.2).
    """

    forget_bias: float = 1.0

    num_gates: ClassVar[int] = 4
    num_states: ClassVar[int] = 2

    @nn.nowrap
    def bias_init(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.zeros(shape, dtype).at[self.dim : 2 * self.dim].set(self.forget_bias)

    @nn.nowrap
    def step(self, state: State, input_BG: jax.Array, recurrent_BG: jax.Array) -> State:
        i_BD, f_BD, g_BD, o_BD = jnp.split(input_BG + recurrent_BG, 4, axis=-1)
        c_BD = jax.nn.sigmoid(f_BD) * state[1] + jax.nn.sigmoid(i_BD) * jnp.tanh(g_BD)
        return jax.nn.sigmoid(o_BD) * jnp.tanh(c_BD), c_BD


class RecurrentStack(nn.Module):
    """Recurrent layers, one after the other, named `layer0`, `layer0_backward`, `layer1` and so on.

    Dropout of the inputs of every layer has one mask for all steps of a row (Gal & Ghahramani 2016).

    Attributes:
      layer: makes a layer, such as `LSTM` or `partial(LSTM, forget_bias=0.0)`.
      dim: state dim of each direction, D.
      num_layers: number of layers.
      is_bidirectional: whether each layer reads its input in both directions. The outputs of both are
        concatenated.
      dropout: probability that a feature of a layer's input is dropped in training.
      recurrent_dropout: probability that a value of a layer's h is dropped; see `Recurrence`.
      dtype: dtype of the computation; parameters stay float32. `None` means that of inputs and parameters.
    """

    layer: Callable[..., Recurrence]
    dim: int
    num_layers: int = 1
    is_bidirectional: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x_BTF: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        states: tuple[State, ...] | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, tuple[State, ...]]:
        """Returns the outputs of the last layer and the states of all layers after their last step.

        The outputs have shape B × T × D, or B × T × 2D for both directions. The states are in the order of
        the names of the layers. The last step of a backward layer is the first one of the sequence.

        Args:
          x_BTF: inputs.
          segment_ids_BT: number of the sequence that each step belongs to; see `Recurrence`.
          states: states before the first steps, in the same order. `None` means zeros.
          train: whether dropout is on.
        """
        after: list[State] = []
        for index in range(self.num_layers):
            x_BTF = Dropout(self.dropout, broadcast_dims=(1,), deterministic=not train)(x_BTF)
            outputs = []
            for is_backward in (False, True)[: 1 + self.is_bidirectional]:
                layer = self.layer(
                    dim=self.dim,
                    is_backward=is_backward,
                    recurrent_dropout=self.recurrent_dropout,
                    dtype=self.dtype,
                    name=f"layer{index}_backward" if is_backward else f"layer{index}",
                )
                before = None if states is None else states[len(after)]
                h_BTD, state = layer(x_BTF, segment_ids_BT, before, train)
                outputs.append(h_BTD)
                after.append(state)
            x_BTF = jnp.concatenate(outputs, -1)
        return x_BTF, tuple(after)


def starts(segment_ids_BT: jax.Array, is_backward: bool = False) -> jax.Array:
    """Returns at which steps a sequence starts after another one, bool, shape B × T.

    Padding between the steps of one sequence does not matter.

    Args:
      segment_ids_BT: number of the sequence that each step belongs to; 0 is padding.
      is_backward: whether the steps go from the last one to the first.
    """
    ids_BT = jnp.asarray(segment_ids_BT)
    if is_backward:
        return starts(ids_BT[:, ::-1])[:, ::-1]
    index_BT = jnp.where(ids_BT > 0, jnp.arange(ids_BT.shape[1])[None], -1)
    last_BT = jax.lax.cummax(index_BT, axis=1)
    before_BT = jnp.pad(last_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    ids_before_BT = jnp.take_along_axis(ids_BT, jnp.maximum(before_BT, 0), axis=1)
    return (ids_BT > 0) & (before_BT >= 0) & (ids_BT != ids_before_BT)
