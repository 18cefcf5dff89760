import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dl.diagnostics.layers import Layer, format_layers, layer_table
from dl.flops import count_flops
from dl.models.mlp import MLP
from dl.models.resnet import ResNet
from dl.models.vit import ViT
from dl.training.state import num_params


def table_of(model, *inputs):
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return variables, layer_table(model.apply, variables, *inputs)


def test_each_layer_of_a_perceptron():
    _, layers = table_of(MLP(hidden=(4,), num_classes=2), jnp.zeros((5, 3)))
    assert [layer for layer in layers if layer.kind != "Dropout"] == [
        Layer((), "MLP", ((5, 3),), ((5, 2),), 0, 0, 0),
        Layer(("Dense_0",), "Dense", ((5, 3),), ((5, 4),), 3 * 4 + 4, 0, 2 * 5 * 3 * 4),
        Layer(("Dense_1",), "Dense", ((5, 4),), ((5, 2),), 4 * 2 + 2, 0, 2 * 5 * 4 * 2),
    ]


class Turn(nn.Module):
    @nn.compact
    def __call__(self, x_BD, _):
        return nn.Dense(4, name="dense")(x_BD), None


class Intricate(nn.Module):
    """A layer used twice, a loop over layers, recomputation, a product and a parameter of its own."""

    def setup(self):
        self.twice = nn.Dense(4)
        self.inner = Recomputed()

    def encode(self, x_BD):
        return self.twice(self.twice(x_BD))

    def __call__(self, x_BD):
        return self.inner(self.encode(x_BD))


class Recomputed(nn.Module):
    @nn.compact
    def __call__(self, x_BD):
        x_BD, _ = nn.scan(Turn, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(
            name="turns"
        )(x_BD, None)
        x_BD = nn.remat(nn.Dense)(4, name="again")(x_BD)
        return nn.BatchNorm(use_running_average=True)(x_BD @ self.param("own", nn.initializers.ones, (4, 6)))


def test_parameters_and_flops_belong_to_the_module_that_has_them():
    variables, layers = table_of(Intricate(), jnp.zeros((2, 4)))
    found = {"/".join(x.path): (x.num_parameters, x.num_state, x.flops) for x in layers}
    dense = 2 * 2 * 4 * 4
    assert found == {
        "": (0, 0, 0),
        "twice": (20, 0, 2 * dense),
        "inner": (24, 0, 2 * 2 * 4 * 6),
        "inner/turns": (0, 0, 0),
        "inner/turns/dense": (3 * 20, 0, 3 * dense),
        "inner/again": (20, 0, dense),
        "inner/BatchNorm_0": (12, 12, 0),
    }
    assert sum(layer.num_parameters for layer in layers) == num_params(variables["params"])


@pytest.mark.parametrize(
    "model",
    [
        ResNet(num_classes=3, num_blocks=(1, 1), width=4),
        ViT(num_classes=3, patch_size=8, dim=8, num_layers=2, num_heads=2, mlp_dim=16),
    ],
    ids=["resnet", "vit"],
)
def test_columns_add_up_to_the_model(model):
    images_BHWC = jnp.zeros((1, 16, 16, 3))
    variables, layers = table_of(model, images_BHWC)
    assert sum(layer.num_parameters for layer in layers) == num_params(variables["params"])
    assert sum(layer.flops for layer in layers) == count_flops(model.apply, variables, images_BHWC)
    assert sum(layer.flops > 0 for layer in layers) > 5


def test_nothing_is_computed():
    def forward(variables, x):
        y = nn.Dense(3).apply(variables, x)
        assert isinstance(y, jax.core.Tracer)
        return y

    huge = jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32)
    variables = jax.eval_shape(nn.Dense(3).init, jax.random.key(0), huge)
    assert layer_table(forward, variables, huge)[0].flops == 2 * 10**12 * 3


def test_the_table_ends_with_totals():
    layers = [Layer((), "A", (), (), 1200, 0, 7), Layer(("b",), "B", ((2, 3),), ((),), 34, 5, 10**6)]
    table = format_layers(layers, "title")
    assert [column.footer for column in table.columns][-3:] == ["1,234", "5", "1,000,007"]
    assert list(table.columns[2].cells) == ["", "2 x 3"]
    assert list(table.columns[3].cells) == ["", "scalar"]
