import jax
import numpy as np
import pytest

from dl.runs.console import Console
from dl.runs.log import read_metrics
from dl.training.state import num_params
from experiments.mlp_342 import experiment
from tests.helpers import train_in


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "coin"),  # what a coin's guess costs
    [("softmax", np.log(2)), ("sigmoid", 2 * np.log(2))],
)
def test_eleven_lines_fall_from_a_coins_loss(head, coin, tmp_path, mesh1):
    perceptron = experiment(head=head)
    train_in(tmp_path, mesh1, perceptron, console=Console(is_quiet=True))
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "all"]
    assert [line["step"] for line in lines] == [*range(0, 1001, 100)]
    curve = [line["loss"] for line in lines]
    assert (np.diff(curve) < 0).all()
    assert curve[0] == pytest.approx(coin, abs=0.3)
    assert curve[-1] <= 0.4978
    assert lines[-1]["accuracy"] >= 0.9


def test_it_has_26_parameters():
    perceptron = experiment()
    batch = perceptron.data.train[np.arange(2)]
    variables = jax.eval_shape(perceptron.init, jax.random.key(0), batch)
    assert num_params(variables["params"]) == 26
