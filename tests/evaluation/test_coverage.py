"""The coverage benchmark sees an interval that is too narrow, one that is too wide, and a test that errs."""

import pytest

from benchmarks import coverage
from dl.errors import UserError
from dl.evaluation.intervals import Interval


def check(half_width, high=coverage.STATED[1]):
    def once(random):
        mean = random.normal()
        return coverage.holds(Interval(mean, mean - half_width, mean + half_width), 0.0)

    return coverage.Check("normal", "one number", once, high=high)


@pytest.mark.parametrize(
    ("half_width", "high", "is_right"),
    [(1.96, 0.97, True), (1.5, 0.97, False), (2.6, 0.97, False), (2.6, 1.0, True)],
)
def test_a_normal_interval_is_right_where_its_width_is(half_width, high, is_right):
    share, found = coverage.measure(check(half_width, high), 2_000)
    assert found == is_right
    assert share == pytest.approx({1.96: 0.95, 1.5: 0.866, 2.6: 0.991}[half_width], abs=0.02)


def test_a_wrong_row_is_the_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(coverage, "checks", lambda: iter([check(1.96), check(1.0)]))
    assert coverage.main(["1000"]) == 1
    out = capsys.readouterr().out
    assert out.count("**wrong**") == 1
    assert "1 wrong" in out


def test_every_interval_and_test_that_is_stated_is_there(capsys):
    assert coverage.main(["20"]) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:] if "|" in line]
    assert {
        "Wilson, a share",
        "clustered Student, token loss",
        "Student over seeds",
        "bootstrap, root of the mean squared error",
        "Newcombe, difference of accuracies",
        "McNemar, exact",
        "sign flips over seeds",
        "forecast of a learning curve",
        "lack of fit",
    } <= set(rows)


def test_no_number_is_one_line():
    with pytest.raises(UserError, match="'many' is not a number of simulations"):
        coverage.main(["many"])
