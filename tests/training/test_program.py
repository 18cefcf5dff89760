"""What is refused before anything is allocated: sizes that no machine or counter holds."""

import numpy as np
import pytest

from dl import optimizers, task
from dl.data.source import ArraySource
from dl.data.splits import ArraySplits
from dl.errors import UserError
from dl.experiment import Experiment
from dl.models.mlp import MLP
from dl.training.population import consecutive
from tests.helpers import train_in


def experiment(hidden=2, **changes):
    points = ArraySource({"image": np.zeros((8, 3), np.float32), "label": np.zeros(8, np.int32)})
    model = MLP((hidden, 2), 2)
    fields = {"num_steps": 1, "batch_size": 8, **changes}
    return Experiment(
        data=ArraySplits("points", train=points),
        task=task.classification(model),
        tx=optimizers.adam(0.1),
        **fields,
    )


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [10**12, 4 * 10**18, 10**23])
def test_a_model_larger_than_the_memory_is_refused_and_leaves_no_folder(hidden, tmp_path, mesh8):
    with pytest.raises(
        UserError, match="parameters and optimizer state take .* GB on each device, which has"
    ) as caught:
        train_in(tmp_path / "run", mesh8, experiment(hidden))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", 2**31),
        ("num_steps", 0),
        ("num_steps", 1.5),
        ("batch_size", 2**40),
        ("eval_batch_size", -1),
        ("eval_every", 0),
        ("seed", 2**32),
        ("seed", -1),
    ],
)
def test_a_count_that_cannot_be_is_refused_at_once(name, value):
    with pytest.raises(UserError, match=f"{name}={value} is out of range"):
        experiment(**{name: value})


def test_more_runs_than_seeds_are_refused():
    with pytest.raises(UserError, match="num_seeds=2 is out of range"):
        consecutive(2**32 - 1, 2)
    with pytest.raises(UserError, match="num_seeds=1000000000000 is out of range"):
        consecutive(0, 10**12)
    assert consecutive(2**32 - 2, 2).seeds == (2**32 - 2, 2**32 - 1)
