"""A whole benchmark on digits: what chooses, what is measured with what, and that nothing happens twice."""

import fcntl
import json
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from dl import Experiment, NonNegativeFloat, PositiveFloat, Seed, benchmark_main, optimizers, task
from dl.data import ArraySource, ArraySplits
from dl.errors import UserError
from dl.evaluation.intervals import t_interval
from dl.models.mlp import MLP
from dl.penalties import l2, with_penalty
from dl.runs.console import Console
from dl.studies import runs as dl_runs
from dl.studies.benchmark import benchmark
from dl.system.json_files import write_json
from dl.training.signals import Stopped
from tests.helpers import replace_training, train_in

DIGITS = load_digits()


def source_of(start, stop, shift=0):
    labels = np.int32((DIGITS.target[start:stop] + shift) % 10)
    return ArraySource({"image": np.float32(DIGITS.images[start:stop, :, :, None] / 16), "label": labels})


# The labels of test are wrong: whoever chose by it would choose not to learn.
DATA = ArraySplits(
    "digits",
    train=source_of(0, 128),
    evaluations={"validation": source_of(128, 192), "test": source_of(192, 256, shift=1)},
)
FACTORS = {"plain": 1.0, "small": 1e-31}
RATES = (1e-6, 0.1, 1e30)


def experiment(
    optimizer: str = "plain",
    learning_rate: PositiveFloat = 0.1,
    notes: Path = Path("notes.txt"),
    seed: Seed = 3,
) -> Experiment:
    """A perceptron: with two layers a rate of 1e30 overflows.

    Args:
      optimizer: plain gradient descent, or with a rate that is scaled down.
      learning_rate: before it is scaled.
      notes: a file that is not read.
      seed: the first one.
    """
    model = MLP(hidden=(16,), num_classes=10)
    return Experiment(
        data=DATA,
        task=task.classification(model),
        tx=optimizers.sgd(FACTORS[optimizer] * learning_rate),
        num_steps=6,
        batch_size=64,
        seed=seed,
    )


def hold(folder, *words):
    argv = ["--workdir", str(folder), "--mesh", "data=1", "--tuning-seeds", "2", "--final-seeds", "2", *words]
    benchmark_main(experiment, "optimizer", list(FACTORS), "learning_rate", RATES, argv)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    hold(folder)
    return folder


def benchmark_of(folder):
    return json.loads((folder / "benchmark.json").read_text())


def rows_of(folder):
    return {row["name"]: row for row in benchmark_of(folder)["rows"]}


def result_of(folder, run):
    return json.loads((folder / run / "result.json").read_text())


@pytest.mark.slow
def test_it_leaves_a_table_its_numbers_and_a_figure(folder):
    table = (folder / "benchmark.md").read_text()
    assert table.splitlines()[0] == "| optimizer | learning_rate | test accuracy, mean of 2 seeds | 95 % |"
    assert len(table.splitlines()) == 4
    assert set(rows_of(folder)) == set(FACTORS)
    assert benchmark_of(folder)["options"]["notes"] == "notes.txt"
    assert (folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_validation_chooses_the_rate_and_test_does_not(folder):
    tuned = result_of(folder, "tune-plain")["members"]
    means = [
        np.mean([m["metrics"]["validation"]["loss"] or math.nan for m in tuned if m["learning_rate"] == rate])
        for rate in RATES
    ]
    assert means[1] < means[0] < math.log(10) * 3
    assert rows_of(folder)["plain"]["learning_rate"] == RATES[1]
    np.testing.assert_allclose(rows_of(folder)["plain"]["validation_losses"][:2], means[:2])
    # The rate that does not learn would have had the better test loss; the tuning never saw that.
    assert all(set(member["metrics"]) == {"validation"} for member in tuned)
    for run in folder.glob("tune-*"):
        assert '"test"' not in (run / "metrics.jsonl").read_text()
    assert [m["seed"] for m in tuned] == [3, 4] * 3


@pytest.mark.slow
def test_a_rate_that_diverges_never_wins(folder):
    row = rows_of(folder)["plain"]
    assert row["validation_losses"][2] is None
    diverged = [m for m in result_of(folder, "tune-plain")["members"] if m["learning_rate"] == RATES[2]]
    assert [m["metrics"]["validation"]["loss"] for m in diverged] == [None, None]


@pytest.mark.slow
def test_an_optimum_at_the_edge_is_marked(folder):
    rows = {line.split()[1]: line for line in (folder / "benchmark.md").read_text().splitlines()[2:]}
    assert "1e+30 (edge of the range)" in rows["small"]
    assert "edge" not in rows["plain"]


@pytest.mark.slow
def test_the_figure_is_the_mean_over_fresh_seeds_with_its_interval(folder):
    for name, row in rows_of(folder).items():
        members = result_of(folder, f"final-{name}")["members"]
        assert [m["seed"] for m in members] == [5, 6]
        assert {m["learning_rate"] for m in members} == {row["learning_rate"]}
        one, two = (m["metrics"]["test"]["accuracy"] for m in members)
        assert row["test"] == pytest.approx((one + two) / 2)
        # Of two values: t (0.975, 1 degree of freedom) times half their distance.
        half = 12.7062 * abs(one - two) / 2
        low, high = max(row["test"] - half, 0.0), min(row["test"] + half, 1.0)  # a share
        assert row["interval"] == pytest.approx([low, high], rel=1e-4, abs=1e-9)


@pytest.mark.slow
def test_a_benchmark_that_is_resumed_does_nothing_twice(folder, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    hold(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.json*")} == before
    assert len(json.loads((folder / "tune-plain" / "run.json").read_text())["starts"]) == 1
    assert capsys.readouterr().out.splitlines()[0].startswith("plain: learning_rate=0.1, test accuracy")


@pytest.mark.slow
def test_other_options_in_the_same_folder_are_refused(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        hold(folder, "--seed", "9")
    assert caught.value.code == 2
    assert "seed: 3 there, 9 here" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_of_an_older_version_is_resumed_and_keeps_its_options(folder, tmp_path, capsys):
    """Such a folder has race.json, with lanes for rows."""
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    record = json.loads((old / "benchmark.json").read_text())
    record.pop("sha256")
    write_json(old / "race.json", {**record, "lanes": record.pop("rows")})
    for name in ("benchmark.json", "benchmark.md", "benchmark.png"):
        (old / name).unlink()
    (old / "race.md").touch()
    with pytest.raises(SystemExit):
        hold(old, "--seed", "9")
    assert "holds another benchmark (seed: 3 there, 9 here)" in capsys.readouterr().err
    hold(old)
    assert benchmark_of(old) == benchmark_of(folder)
    assert len(json.loads((old / "tune-plain" / "run.json").read_text())["starts"]) == 1


@pytest.mark.slow
def test_it_is_a_function_that_returns_the_rows_and_the_table(folder, mesh1):
    found = benchmark(
        experiment,
        "optimizer",
        list(FACTORS),
        "learning_rate",
        RATES,
        tuning_seeds=2,
        final_seeds=2,
        folder=folder,
        mesh=mesh1,
        console=Console(is_quiet=True),
    )
    assert found.rows == benchmark_of(folder)["rows"]
    assert found.markdown + "\n" == (folder / "benchmark.md").read_text()
    with pytest.raises(UserError, match="'optimiser' is not an option of .*; choose one of optimizer, "):
        benchmark(experiment, "optimiser", list(FACTORS), "learning_rate", RATES)


# Without training.


def with_intervals(result):
    """Adds the intervals of the test metrics over the members, as a run states them."""
    metrics = [row["metrics"]["test"] for row in result["members"]]
    intervals = {
        name: list(t_interval([row[name] for row in metrics], is_share=name == "accuracy")[1:])
        for name in metrics[0]
    }
    return {**result, "intervals": {"test": intervals}}


def member(seed, rate, loss):
    metrics = {"validation": {"loss": loss}, "test": {"accuracy": 0.5}}
    return {"seed": seed, "learning_rate": rate, "metrics": metrics}


def test_a_rate_with_one_diverged_seed_loses_and_one_final_seed_has_no_interval(
    tmp_path, monkeypatch, capsys
):
    tuning = [(1e-6, 2.0), (1e-6, 2.2), (0.1, 0.1), (0.1, None), (1e30, 0.1), (1e30, math.nan)]

    def train(experiment, run, mesh, population, console):
        run.folder.mkdir()
        rows = [member(k, rate, loss) for k, (rate, loss) in enumerate(tuning)]
        return {"members": rows if len(population) > 1 else [member(7, 1e-6, 2.0)], "seconds": 1.0}

    replace_training(monkeypatch, train)
    hold(tmp_path, "--final-seeds", "1")
    row = rows_of(tmp_path)["plain"]
    assert (row["learning_rate"], row["test"], row["interval"]) == (1e-6, 0.5, None)
    assert row["validation_losses"] == [pytest.approx(2.1), None, None]
    assert "| 50.00 % | unknown |" in (tmp_path / "benchmark.md").read_text()


def test_a_method_that_diverges_at_every_rate_ends_the_benchmark_in_one_line(tmp_path, monkeypatch, capsys):
    rows = [member(k, rate, None) for k, rate in enumerate(np.repeat(RATES, 2))]
    replace_training(monkeypatch, lambda *args, **kwargs: {"members": rows, "seconds": 1.0})
    with pytest.raises(SystemExit) as caught:
        hold(tmp_path)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: plain diverges at every learning_rate of [1e-06, 0.1")


def test_what_resumes_a_stopped_benchmark_is_its_command(tmp_path, monkeypatch, capsys):
    def train(experiment, run, *args, **kwargs):
        raise Stopped(signal.SIGTERM, run.resume_command)

    replace_training(monkeypatch, train)
    with pytest.raises(SystemExit) as caught:
        hold(tmp_path)
    assert caught.value.code == 143
    assert capsys.readouterr().err.rstrip().endswith(f"--workdir {tmp_path}")


# A number of the loss is tuned: each of its values is a program.

WEIGHTS = {"none": (0.0,), "l2": (1e30, 0.01), "decay": (0.0, 0.5)}


def regularized(regularizer: str = "none", strength: NonNegativeFloat = 0.0, seed: Seed = 3) -> Experiment:
    """A linear classifier.

    Args:
      regularizer: l2 in the loss, or decay in the optimizer.
      strength: of that.
      seed: the first one.
    """
    model = MLP(hidden=(), num_classes=10)
    plain = task.classification(model)
    return Experiment(
        data=DATA,
        task=with_penalty(plain, l2(strength)) if regularizer == "l2" else plain,
        tx=optimizers.sgd(0.1, weight_decay=strength if regularizer == "decay" else 0.0),
        num_steps=4,
        batch_size=64,
        seed=seed,
    )


def hold_regularized(folder, *words, values=WEIGHTS, **how):
    argv = ["--workdir", str(folder), "--mesh", "data=1", "--tuning-seeds", "2", "--final-seeds", "2", *words]
    benchmark_main(regularized, "regularizer", values, "strength", values, argv, reference="none", **how)


@pytest.fixture(scope="module")
def regularized_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regularized")
    hold_regularized(folder, values={"none": WEIGHTS["none"], "l2": WEIGHTS["l2"]})
    return folder


@pytest.mark.slow
def test_a_number_of_the_loss_has_the_effect_that_a_run_of_its_own_has(regularized_folder, tmp_path, mesh1):
    tuned = result_of(regularized_folder, "tune-l2-0.01")["members"]
    assert [m["seed"] for m in tuned] == [3, 4]
    alone = train_in(tmp_path, mesh1, regularized("l2", 0.01, seed=4), console=Console(is_quiet=True))
    assert tuned[1]["metrics"]["validation"]["loss"] == pytest.approx(
        alone["metrics"]["validation"]["loss"], rel=1e-5
    )
    # Without the penalty it would be the same as none.
    none = result_of(regularized_folder, "tune-none-0")["members"][1]
    assert tuned[1]["metrics"]["validation"]["loss"] != none["metrics"]["validation"]["loss"]


@pytest.mark.slow
def test_a_value_of_which_every_seed_diverges_loses_to_the_others(regularized_folder):
    row = rows_of(regularized_folder)["l2"]
    assert (row["strength"], row["validation_losses"][0]) == (0.01, None)
    final = json.loads((regularized_folder / "final-l2" / "run.json").read_text())
    assert final["options"]["strength"] == 0.01


@pytest.mark.slow
def test_nothing_is_at_the_edge_where_nothing_is_tuned(regularized_folder):
    row = next(
        row for row in (regularized_folder / "benchmark.md").read_text().splitlines() if "| none |" in row
    )
    assert row.startswith("| none |  | ")
    assert not rows_of(regularized_folder)["none"]["is_at_the_edge"]


def stub(monkeypatch, scores, validation=None):
    """Replaces training: of each method the scores, of each value the validation figures, from tables."""
    calls = []

    def train(experiment, run, mesh, population, console):
        calls.append((run.folder.name, experiment, population))
        run.folder.mkdir()
        own = scores[run.definition.recorded["regularizer"]]
        chosen_by = (
            {"loss": 0.1, "accuracy": 0.5}
            if validation is None
            else validation[run.definition.recorded["strength"]]
        )
        rows = [
            {
                **population.describe(k),
                "metrics": {"validation": chosen_by, "test": {"accuracy": own[k % len(own)]}},
            }
            for k in range(len(population))
        ]
        return with_intervals({"members": rows, "seconds": 1.0, "dataset": {"sizes": {"test": 64}}})

    replace_training(monkeypatch, train)
    return calls


def test_only_numbers_of_the_optimizer_share_a_program(tmp_path, monkeypatch):
    calls = stub(monkeypatch, dict.fromkeys(WEIGHTS, (0.5, 0.75)))
    # A decay of 0 adds no step to the optimizer: the two are different programs.
    hold_regularized(tmp_path)
    parts = ["tune-none-0", "final-none", "tune-l2-1e+30", "tune-l2-0.01", "final-l2"]
    assert [name for name, _, _ in calls] == [*parts, "tune-decay-0", "tune-decay-0.5", "final-decay"]
    assert all(not population.options for _, _, population in calls)
    assert "test" not in calls[2][1].data.evaluations


def test_the_difference_to_the_reference_is_paired_by_seed(tmp_path, monkeypatch):
    scores = {
        "none": (0.80, 0.70, 0.60, 0.75),
        "l2": (0.84, 0.75, 0.63, 0.80),
        "decay": (0.79, 0.72, 0.60, 0.74),
        "worse": (0.74, 0.63, 0.55, 0.68),
    }
    stub(monkeypatch, scores)
    hold_regularized(tmp_path, "--final-seeds", "4", values=dict.fromkeys(scores, (0.1,)))
    rows = rows_of(tmp_path)
    for name, verdict in (("l2", "better"), ("decay", "no difference shown"), ("worse", "worse")):
        difference = rows[name]["difference"]
        interval = stats.ttest_rel(scores[name], scores["none"]).confidence_interval(0.95)
        assert difference["interval"] == pytest.approx([interval.low, interval.high])
        assert difference["estimate"] == pytest.approx(np.mean(scores[name]) - np.mean(scores["none"]))
        assert difference["verdict"] == verdict
    assert "difference" not in rows["none"]
    rows = {line.split()[1]: line for line in (tmp_path / "benchmark.md").read_text().splitlines()[2:]}
    assert rows["l2"].endswith("| +4.25 (+2.73 to +5.77) | better |")
    assert rows["decay"].endswith("| +0.00 (-2.25 to +2.25) |  |")
    assert rows["none"].endswith("|  |  |")
    assert len({line.count("|") for line in (tmp_path / "benchmark.md").read_text().splitlines()}) == 1


@pytest.mark.parametrize(("metric", "best"), [("loss", 0.1), ("accuracy", 0.2)])
def test_the_loss_or_the_accuracy_chooses_and_who_diverges_never_wins(tmp_path, monkeypatch, metric, best):
    figures = {0.1: (0.1, 0.5), 0.2: (0.3, 0.9), 0.3: (None, 0.99)}
    validation = {value: {"loss": loss, "accuracy": accuracy} for value, (loss, accuracy) in figures.items()}
    stub(monkeypatch, {"none": (0.5,), "l2": (0.5,)}, validation)
    hold_regularized(tmp_path, values={"none": (0.1,), "l2": tuple(figures)}, metric=metric)
    row = rows_of(tmp_path)["l2"]
    assert row["strength"] == best
    assert row["validation_losses"] == [pytest.approx(0.1), pytest.approx(0.3), None]
    assert row.get("validation_accuracies") == (None if metric == "loss" else pytest.approx([0.5, 0.9, 0.99]))


def test_one_seed_is_not_compared(tmp_path, monkeypatch):
    stub(monkeypatch, {"none": (0.5,), "l2": (0.75,)})
    hold_regularized(tmp_path, "--final-seeds", "1", values={"none": (0.0,), "l2": (0.1,)})
    assert rows_of(tmp_path)["l2"]["difference"]["interval"] is None
    row = next(row for row in (tmp_path / "benchmark.md").read_text().splitlines() if "| l2 |" in row)
    assert row.endswith("| +25.00 | one seed, and no predictions to pair |")


def test_a_reference_that_does_not_take_part_is_refused():
    with pytest.raises(ValueError, match="reference='nobody' is not one of none, l2, decay"):
        benchmark_main(regularized, "regularizer", WEIGHTS, "strength", WEIGHTS, [], reference="nobody")


def test_a_benchmark_of_another_metric_chooses_and_ranks_by_its_direction(tmp_path, monkeypatch, capsys):
    calls = stub(monkeypatch, {"none": (0.5,), "l2": (0.5,)})
    stubbed = dl_runs.train_run
    losses_of = {"none": 0.25, "l2": 0.125}

    def train_with_losses(experiment, run, mesh, population, console):
        result = stubbed(run, mesh, population=population, console=console).record
        for k, row in enumerate(result["members"]):
            row["metrics"]["test"]["loss"] = (1 + k) * losses_of[run.definition.recorded["regularizer"]]
        return with_intervals({**result, "better": {"loss": "min", "accuracy": "max"}})

    replace_training(monkeypatch, train_with_losses)
    hold_regularized(tmp_path, values={"none": (0.0,), "l2": (0.1,)}, test_metric="loss")
    assert calls
    record = benchmark_of(tmp_path)
    assert [row["name"] for row in record["rows"]] == ["l2", "none"]
    assert record["test_metric"] == "loss"
    table = (tmp_path / "benchmark.md").read_text().splitlines()
    assert table[0].startswith(
        "| regularizer | strength | test loss, mean of 2 seeds | 95 % | more than none"
    )
    assert table[2].startswith("| l2 |  | 0.1875 | -0.6066 to 0.9816 | -0.1875 (")
    assert "%" not in table[2]
    assert "none: test loss 0.375 (-1.213 to 1.963)" in capsys.readouterr().out


def test_a_metric_that_is_not_measured_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    calls = stub(monkeypatch, {})
    with pytest.raises(SystemExit) as caught:
        hold_regularized(tmp_path / "benchmark", metric="f1")
    assert (caught.value.code, calls, (tmp_path / "benchmark").exists()) == (2, [], False)
    assert "metric='f1' is not measured; choose one of" in capsys.readouterr().err


def test_a_benchmark_in_use_or_with_a_damaged_record_is_one_line(tmp_path, monkeypatch, capsys):
    calls = stub(monkeypatch, {})
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            hold_regularized(tmp_path)
    assert "is in use by another process" in capsys.readouterr().err
    (tmp_path / "benchmark.json").write_text('{"rows": [], "sha256": 1}')
    with pytest.raises(SystemExit) as caught:
        hold_regularized(tmp_path)
    error = capsys.readouterr().err
    assert (caught.value.code, error.count("\n"), calls) == (2, 1, [])
    assert "benchmark.json is damaged" in error
