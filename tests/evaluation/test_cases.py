import pytest

from benchmarks.evaluation_cases import differences, make_case

# Few of the campaign's shapes, since each is compiled; `python -m benchmarks.evaluation_cases` has them all.
SHAPES = [(8, 2, 8), (8, 5, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, 40, 10))
def test_random_cases_do_not_differ_from_scikit_learn(start):
    found = [(number, *differences(make_case(number, SHAPES))) for number in range(start, start + 10)]
    assert [case for case in found if len(case) > 1] == []
