"""What an evaluation decides, without a run around it."""

import numpy as np
import pytest

from dl.stopping import Best, KeepBest, StopAt
from dl.training.choice import choose
from dl.training.progress import Progress


def metrics_of(loss, accuracy=0.5):
    return {"validation": {"loss": np.asarray(loss), "accuracy": np.asarray(accuracy)}}


INTERVALS = {"validation": {"loss": [0.0, 1.0, "by hand"]}}


def decided(choice, progress):
    """Takes a choice over into the progress, as a session does."""
    progress.best, progress.stopped_early = choice.best, choice.stopped_early
    progress.evaluations, progress.intervals = choice.evaluations, choice.intervals
    return choice


def test_without_a_rule_the_last_evaluation_counts_and_nothing_is_taken():
    progress = Progress()
    for loss in (0.5, 0.7):
        choice = decided(choose(None, None, progress, metrics_of(loss), INTERVALS, 1), progress)
        assert choice.evaluations["validation"]["loss"] == loss
        assert not choice.is_taken.any()
    assert choice.stopped_early == ""


def test_only_an_evaluation_that_is_the_best_replaces_the_metrics_and_nothing_given_changes():
    progress = Progress()
    first = decided(choose(KeepBest(), None, progress, metrics_of(0.5), INTERVALS, 1), progress)
    before = progress.to_json()
    second = choose(KeepBest(), None, progress, metrics_of(0.7), {}, 2)
    assert {**progress.to_json(), "total": 0} == {**before, "total": 0}
    assert (first.is_taken.shape, bool(first.is_taken), bool(second.is_taken)) == ((), True, False)
    assert second.evaluations["validation"]["loss"] == 0.5
    assert second.intervals == INTERVALS
    assert (second.best.step, second.best.waited) == ([1], [1])


def test_an_evaluation_before_the_first_step_is_never_the_best():
    choice = choose(KeepBest(), None, Progress(), metrics_of(0.1), INTERVALS, 0)
    assert choice.best.value == [None]
    assert not choice.is_taken.any()
    assert choice.evaluations["validation"]["loss"] == 0.1


def test_each_run_of_a_population_keeps_its_own_metrics():
    progress = Progress(best=Best.none_yet(2))
    rule = KeepBest()
    decided(choose(rule, None, progress, metrics_of([0.5, 0.5], [0.1, 0.2]), {}, 1), progress)
    choice = decided(choose(rule, None, progress, metrics_of([0.6, 0.4], [0.3, 0.4]), {}, 2), progress)
    np.testing.assert_array_equal(choice.is_taken, [False, True])
    np.testing.assert_array_equal(choice.evaluations["validation"]["accuracy"], [0.1, 0.4])
    assert choice.best.step == [1, 2]


@pytest.mark.parametrize(
    ("keep_best", "stop_at", "losses", "why"),
    [
        (KeepBest(patience=2), None, [0.5, 0.6, 0.7], "validation loss has not improved for 2 evaluations"),
        (None, StopAt(value=0.4), [0.5, 0.4], "validation loss has reached 0.4"),
        (KeepBest(), StopAt(value=0.1, split="train"), [0.5, 0.4], ""),
    ],
)
def test_a_run_ends_when_it_has_seen_enough_and_says_why(keep_best, stop_at, losses, why):
    progress, said = Progress(), []
    for step, loss in enumerate(losses, 1):
        choice = decided(choose(keep_best, stop_at, progress, metrics_of(loss), {}, step), progress)
        said.append(choice.stopped_early)
    assert said == [""] * (len(losses) - 1) + [why]


def test_the_progress_of_an_older_version_is_read():
    saved = Progress(evaluated_step=7).to_json()
    older = {**saved, "reported_step": saved["evaluated_step"]}
    del older["evaluated_step"]
    assert Progress.from_json(older).evaluated_step == 7
    assert Progress.from_json(saved).evaluated_step == 7
