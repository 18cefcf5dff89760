"""The table of docs/plans.md: its small rows are computed again."""

import importlib.util
import re

import pytest

from benchmarks.plans import MACHINES, PAGE, RULE, compute, row_of, with_row
from dl.diagnostics.plan import find_target
from experiments.gpt_ladder import SIZES

ROWS = PAGE.read_text(encoding="utf-8").partition(RULE)[2].strip().splitlines()


def key_of(row):
    return tuple(cell.strip(" `") for cell in row.split("|")[1:3])


def is_small(row):
    """Whether a row takes a few minutes: a small model on eight devices, or one that does not compile."""
    model, machine = key_of(row)
    return find_target(machine).num_devices == 8 and (model == "124m" or "| > " in row)


def numbers_of(row):
    return [float(number) for number in re.findall(r"(?<![\w.])\d[\d.,e+]*", row.replace(",", ""))]


def test_the_rows_are_of_the_ladder_and_its_machines():
    keys = [key_of(row) for row in ROWS]
    assert len(set(keys)) == len(keys)
    assert all(model in SIZES and machine in MACHINES for model, machine in keys)
    assert any(map(is_small, ROWS))


def test_a_row_replaces_an_earlier_one_in_its_place():
    page = f"before\n{RULE}\n| 7b | `tpu:v5e-256` | old |\n| 124m | `cuda:h100:8` | kept |\n"
    page = with_row(with_row(page, "| 124m | `tpu:v5e-256` | new |"), "| 7b | `tpu:v5e-256` | new |")
    assert page.splitlines()[2:] == [
        "| 124m | `tpu:v5e-256` | new |",
        "| 7b | `tpu:v5e-256` | new |",
        "| 124m | `cuda:h100:8` | kept |",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("row", [*filter(is_small, ROWS)], ids=lambda row: " ".join(key_of(row)))
def test_a_small_row_is_computed_again(row):
    model, machine = key_of(row)
    package = "libtpu" if machine.startswith("tpu") else "jax_cuda13_plugin"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    again = row_of(model, machine, compute(model, machine))
    # Another version of the compiler may need a little more or less.
    assert numbers_of(again) == pytest.approx(numbers_of(row), rel=0.1)
    assert re.sub(r"[\d.,]+", "", again) == re.sub(r"[\d.,]+", "", row)
