"""Surrogates: their fidelity is the share of equal predictions, and simple networks are found again."""

import io
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.tree import DecisionTreeClassifier

from dl import Experiment, optimizers, task
from dl.analysis.explained_run import ExplainedRun
from dl.analysis.surrogates import Simplification, Surrogate, simplify
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.models.mlp import MLP
from dl.sharding import make_mesh
from dl.training.result import Result


class Named(ArraySplits):
    feature_names = ("width", "height", "weight")


def _run(kernel, bias):
    random = np.random.default_rng(0)

    def source(size):
        x = random.normal(size=(size, 3)).astype(np.float32)
        return ArraySource({"x": x, "label": np.int32(x.sum(1) > 0)})

    experiment = Experiment(
        data=Named("rows", source(200), {"test": source(100)}),
        task=task.classification(MLP(hidden=(), num_classes=2), input_name="x"),
        tx=optimizers.sgd(0.1),
        num_steps=1,
        batch_size=8,
    )
    variables = {"params": {"Dense_0": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}}
    return ExplainedRun(Result(experiment, {}, run=None, mesh=make_mesh(), variables=variables))


@pytest.fixture(scope="module")
def stump():
    """A network that looks at the height alone, with the border 0.5."""
    return _run([[0.0, 0.0], [0.0, 9.0], [0.0, 0.0]], [0.0, -4.5])


def test_a_tree_finds_the_border_that_the_network_has(stump):
    found = simplify(stump, max_depth=1)
    x = stump.result.experiment.data.evaluations["test"].arrays["x"]
    expected = x[:, 1] > 0.5
    assert found.tree.fidelity.estimate == pytest.approx((found.tree.predicted == expected).mean())
    assert found.tree.fidelity.estimate > 0.98
    assert found.tree.model.tree_.threshold[0] == pytest.approx(0.5, abs=0.1)
    assert found.tree_text().startswith("|--- height <= 0.")
    assert found.majority.estimate == pytest.approx((~expected).mean())
    assert found.tree.gain.estimate == pytest.approx(found.tree.fidelity.estimate - found.majority.estimate)
    assert found.network_accuracy.estimate == pytest.approx((expected == (x.sum(1) > 0)).mean())


def test_the_linear_model_names_the_column_and_the_tree_is_drawn(stump):
    found = simplify(stump, max_depth=2)
    assert found.linear.fidelity.estimate > 0.9
    assert found.strongest(1)["1"][0][0] == "height"
    assert found.strongest(1)["1"][0][1] > 0 > found.strongest(1)["0"][0][1]
    file = io.BytesIO()
    found.draw_tree(file)
    assert file.getvalue().startswith(b"\x89PNG")
    assert [row[0] for row in found.table.rows][:2] == ["network", "most frequent class"]


def test_the_boxes_of_a_tree_of_many_classes_do_not_overlap(monkeypatch):
    random = np.random.default_rng(0)
    names, classes = tuple(f"column {v}" for v in range(8)), tuple(f"class {c}" for c in range(10))
    x_BV = random.normal(size=(2000, 8))
    model = DecisionTreeClassifier(max_depth=4).fit(x_BV, (x_BV @ random.normal(size=(8, 10))).argmax(1))
    fitted = Surrogate("tree", model, np.zeros(0), None, None, None)
    found = Simplification(fitted, fitted, None, None, names, classes, "")
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **b: (drawn.append(self), save(self, *a, **b)))
    found.draw_tree(io.BytesIO())
    texts = [text for text in drawn[0].axes[0].texts if "samples" in text.get_text()]
    boxes = [text.get_bbox_patch().get_window_extent() for text in texts]
    assert len(boxes) > 20
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_mistakes_are_one_line(stump):
    for call, message in (
        (lambda: simplify(stump, "validation"), "there is no split validation"),
        (lambda: simplify(stump, max_depth=0), "max_depth=0"),
        (lambda: simplify(_run([[0.0, 0.0]] * 3, [0.0, 1.0])), "the same class"),
    ):
        with pytest.raises(UserError, match=message):
            call()
