"""Sweeps: which points are tried, that a shared program changes no trial, that test is never read."""

import itertools
import json
import sys

import numpy as np
import pytest
from scipy import stats

from dl.cli.commands import main
from dl.cli.space import parse_space
from dl.data import ArraySource, ArraySplits
from dl.data.splits import ChangedSplits
from dl.errors import UserError
from dl.runs.console import Console
from dl.runs.find import find_experiment
from dl.studies.fingerprint import fingerprint
from dl.studies.folder import Study
from dl.studies.search import Choices, Interval, Tpe, grid_points, random_points, rungs
from dl.studies.sweep import sweep
from dl.studies.sweep_tables import plot, table_of
from dl.system.json_files import write_json
from tests.helpers import PLANE


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("experiments") / "plane.py"
    file.write_text(PLANE)
    return str(file)


def sweep_of(folder):
    record = json.loads((folder / "sweep.json").read_text())
    assert len(record.pop("sha256")) == 64
    return record


def test_a_space_is_read_with_the_types_of_the_options():
    kinds = {"rate": float, "size": int, "name": str}
    words = ["rate=log:1e-4:1e-1", "size=8:32:3", "name=mnist:3.0.1,digits"]
    space = parse_space(words, lambda name, text: kinds[name](text))
    assert space == {
        "rate": Interval(1e-4, 1e-1, True),
        "size": Interval(8, 32, False, 3),
        "name": Choices(("mnist:3.0.1", "digits")),
    }
    with pytest.raises(UserError, match="a grid needs a number of values; write rate=log:0.0001:0.1:5"):
        grid_points(space)
    del space["rate"]
    sizes, names = [8, 20, 32], ["mnist:3.0.1", "digits"]
    assert grid_points(space) == [{"size": s, "name": n} for s, n in itertools.product(sizes, names)]


@pytest.mark.parametrize(
    ("dimension", "unit"),
    [
        (Interval(1e-4, 1e-1, True), lambda v: np.log(v / 1e-4) / np.log(1e3)),
        (Interval(-2.0, 3.0), lambda v: (v + 2) / 5),
    ],
)
def test_random_draws_are_uniform_in_the_scale_asked_for(dimension, unit):
    points = random_points({"x": dimension, "y": Choices(("a", "b"))}, 2000, 0)
    values = np.array([point["x"] for point in points])
    assert dimension.low <= values.min() < values.max() <= dimension.high
    assert stats.kstest(unit(values), "uniform").pvalue > 0.01
    assert stats.binomtest([point["y"] for point in points].count("a"), 2000).pvalue > 0.01
    assert points[:7] == random_points({"x": dimension, "y": Choices(("a", "b"))}, 7, 0)
    assert points[:7] != random_points({"x": dimension, "y": Choices(("a", "b"))}, 7, 1)


def test_whole_numbers_are_drawn_equally_often():
    values = [point["n"] for point in random_points({"n": Interval(1, 4)}, 2000, 0)]
    assert stats.chisquare(np.bincount(values)[1:]).pvalue > 0.01
    assert {point["n"] for point in random_points({"n": Interval(1, 4, True)}, 2000, 0)} == {1, 2, 3, 4}


def test_rungs_of_successive_halving():
    # Li et al. 2018, table 1, bracket s = 4: 81 configurations and at most 81 units, reduced by 3.
    assert rungs(81, 81) == [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)]
    assert rungs(9, 100) == [(9, 11), (3, 33), (1, 100)]
    assert rungs(20, 2) == [(20, 2)]


def test_tpe_comes_closer_to_the_best_than_random_and_repeats_itself():
    pytest.importorskip("optuna", reason="needs the extra: search")
    space = {"x": Interval(1e-5, 1.0, True), "y": Choices(("good", "bad"))}

    def search(seed):
        best, points = np.inf, []
        for point, tell in Tpe(space, seed, -1.0).points(30):
            value = (np.log10(point["x"]) + 3) ** 2 + (point["y"] == "bad")
            tell(None if len(points) == 3 else value)
            best = min(best, value)
            points.append(point)
        return best, points

    assert search(0) == search(0)

    def random(seed):
        values = random_points(space, 30, seed)
        return min((np.log10(point["x"]) + 3) ** 2 + (point["y"] == "bad") for point in values)

    assert np.median([search(seed)[0] for seed in range(5)]) < np.median([random(s) for s in range(5)])


def test_a_split_that_is_left_out_is_never_asked_for():
    source = ArraySource({"label": np.zeros(3, np.int32)})
    data = ChangedSplits(ArraySplits("d", source, {"validation": source, "test": source}), without=["test"])
    assert list(data.evaluations) == ["validation"]
    assert data.identity.sizes == {"train": 3, "validation": 3}
    assert data.identity.checksum == data.data.identity.checksum


def load(path):
    namespace = {"__name__": "plane"}
    exec(compile(PLANE, path, "exec"), namespace)
    return namespace["experiment"]


def test_only_what_differs_in_the_optimizer_may_share_a_program(path):
    experiment = load(path)
    base = fingerprint(experiment())
    assert fingerprint(experiment(learning_rate=0.7, seed=5)) == base
    # The same text, and another number in it.
    assert fingerprint(experiment(decay=0.1)) != fingerprint(experiment(decay=0.1001))
    assert base not in (fingerprint(experiment(**{name: 2})) for name in ("batch_size", "num_epochs", "wide"))


@pytest.fixture(scope="module")
def grid(tmp_path_factory, path):
    """A finished grid; its trials ran one by one."""
    folder = tmp_path_factory.mktemp("sweeps") / "grid"
    argv = ["sweep", path, "learning_rate=0.01,0.3", "seed=0,1", "--decay", "0.5", "--method", "grid"]
    options = ["--together", "1", "--mesh", "data=1", "--workdir", str(folder)]
    with pytest.raises(SystemExit) as exit_:
        main([*argv, *options])
    assert exit_.value.code == 0
    return folder, argv, options


@pytest.mark.slow
def test_trials_in_one_program_are_those_of_their_own(grid, dl, path, tmp_path):
    alone = sweep_of(grid[0])["trials"]
    rates, seeds, decays = Choices((0.01, 0.3)), Choices((0, 1)), Choices((0.0, 0.5))
    assert [trial["options"] for trial in alone] == grid_points({"learning_rate": rates, "seed": seeds})
    words = ["sweep", path, "learning_rate=0.01,0.3", "seed=0,1", "decay=0.0,0.5", "--method", "grid"]
    status, out, _ = dl(*words, "--mesh", "data=1", "--workdir", str(tmp_path / "sweep"))
    assert status == 0
    trials = sweep_of(tmp_path / "sweep")["trials"]
    assert [trial["options"] for trial in trials] == grid_points(
        {"learning_rate": rates, "seed": seeds, "decay": decays}
    )
    # The decay stands in the loss: what differs in it cannot share a program.
    assert [trial["folder"] for trial in trials] == ["trial-000-and-3-more", "trial-001-and-3-more"] * 4
    assert [trial["member"] for trial in trials] == [0, 0, 1, 1, 2, 2, 3, 3]
    own = [trial["value"] for trial in trials if trial["options"]["decay"] == 0.5]
    assert own == pytest.approx([trial["value"] for trial in alone], rel=1e-5)
    best = min(trials, key=lambda trial: trial["value"])
    assert f"best_validation_loss={best['value']:.6g} trial={best['trial']} trials=8 failed=0" in out
    assert f"-m plane --learning-rate={best['options']['learning_rate']}" in out.splitlines()[-1].replace(
        "rate ", "rate="
    )


@pytest.mark.slow
def test_the_test_split_is_in_no_trial(grid):
    folder, _, _ = grid
    for trial in sweep_of(folder)["trials"]:
        assert set(trial["metrics"]) == {"validation"}
        result = json.loads((folder / trial["folder"] / "result.json").read_text())
        assert set(result["metrics"]) == {"validation"}
        assert set(result["dataset"]["sizes"]) == {"train", "validation"}
        assert result["metrics"]["validation"]["loss"] == trial["value"]


@pytest.mark.slow
def test_a_sweep_goes_on(grid, dl):
    folder, argv, options = grid
    whole = sweep_of(folder)
    write_json(folder / "sweep.json", {**whole, "trials": whole["trials"][:1]})
    (folder / "trial-002" / "result.json").unlink()
    status, out, _ = dl(*argv, *options)
    assert status == 0
    assert sweep_of(folder) == whole
    said = [line.split(":")[0] for line in out.splitlines() if line.startswith("trial ")]
    assert said == ["trial 1", "trial 2", "trial 3"]
    starts = [len(json.loads((folder / f"trial-00{k}/run.json").read_text())["starts"]) for k in range(4)]
    assert starts == [1, 1, 2, 1]
    assert (folder / "sweep.md").read_text().count("\n| ") == 5
    assert (folder / "sweep.png").stat().st_size > 1000


def test_it_is_a_function_that_returns_the_trials_and_the_best_options(grid, path, mesh1):
    folder, _, _ = grid
    experiment_fn = find_experiment(path)
    space = {"learning_rate": [0.01, 0.3], "seed": [0, 1]}
    how = {"folder": folder, "mesh": mesh1, "console": Console(is_quiet=True)}
    found = sweep(experiment_fn, space, {"decay": 0.5}, method="grid", together=1, **how)
    trials = sweep_of(folder)["trials"]
    assert list(found.rows) == sorted(trials, key=lambda trial: trial["value"])
    others = {"decay": 0.5, "batch_size": 16, "num_epochs": 1, "wide": False}
    assert found.best_options == {**others, **found.best["options"]}
    for space, options, message in (
        (
            {"learning_rat": [1.0]},
            {},
            "'learning_rat' is not an option of plane; choose one of learning_rate, ",
        ),
        ({"seed": [1]}, {"dekay": 1.0}, "'dekay' is not an option of plane"),
        ({"seed": [1]}, {"seed": 1}, "seed is searched and given a value too"),
        ({"seed": []}, {}, "seed has no values to search"),
        ({}, {}, "there is nothing to search"),
    ):
        with pytest.raises(UserError, match=message):
            sweep(experiment_fn, space, options)


@pytest.mark.slow
def test_more_trials_of_a_random_search_join_those_before(dl, path, tmp_path):
    words = [
        "sweep",
        path,
        "learning_rate=log:1e-3:1.0",
        "--mesh",
        "data=1",
        "--workdir",
        str(tmp_path / "w"),
    ]
    first, more = (
        dl(*words, "--num-trials", number) and sweep_of(tmp_path / "w")["trials"] for number in "24"
    )
    assert more[:2] == first
    folders = [trial["folder"] for trial in more]
    assert folders == ["trial-000-and-1-more"] * 2 + ["trial-002-and-1-more"] * 2


@pytest.mark.slow
def test_halving_gives_the_best_third_three_times_the_epochs(dl, path, tmp_path):
    words = ["sweep", path, "learning_rate=log:1e-3:1.0", "--num-epochs", "3", "--method", "halving"]
    options = ["--num-trials", "3", "--metric", "validation.accuracy", "--mesh", "data=1"]
    status, out, _ = dl(*words, *options, "--workdir", str(tmp_path / "halving"))
    assert status == 0
    assert "halving num_epochs: 3 trials with 1, 1 trials with 3" in out
    *first, last = sweep_of(tmp_path / "halving")["trials"]
    best = max(first, key=lambda trial: trial["value"])
    assert last["options"] == {**best["options"], "num_epochs": 3}
    assert f"trial={last['trial']} " in out


@pytest.mark.slow
def test_a_trial_that_fails_stands_in_the_table(dl, path, tmp_path):
    words = ["sweep", path, "batch_size=2000,16", "--method", "grid", "--mesh", "data=1"]
    status, out, _ = dl(*words, "--workdir", str(tmp_path / "sweep"))
    assert status == 0
    failed, finished = sweep_of(tmp_path / "sweep")["trials"]
    assert failed["value"] is None
    assert "batch_size=2000 is larger than the training split" in failed["error"]
    assert f"trial={finished['trial']} trials=2 failed=1" in out


def test_the_plot_has_a_line_for_each_trial_and_an_axis_for_each_option():
    space = {"rate": {"is_log": True}, "network": {}}
    options = [{"rate": 10.0**-k, "network": "ab"[k % 2]} for k in range(4)]
    rows = [{"trial": k, "options": own, "value": [3.0, 1.0, 2.0, None][k]} for k, own in enumerate(options)]
    axes = plot(rows, space, "loss", -1.0).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["rate", "network", "loss"]
    lines = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 3]
    # Worst first; rates 1, 0.01 and 0.1 lie at the ends and the middle of a logarithmic axis.
    np.testing.assert_allclose(lines, [[1, 0, 1], [0, 0, 0.5], [0.5, 1, 0]], atol=1e-9)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["EXP"], "sweep needs NAME=VALUES (an option and its values, such as learning_rate="),
        ([], "sweep needs EXPERIMENT"),
        (["EXP", "lerning_rate=1,2"], "there is no option --lerning-rate; did you mean --learning-rate?"),
        (["EXP", "learning_rate=0,1"], "--learning-rate 0.0 is out of range; it must be more than 0"),
        (["EXP", "batch_size=8,x"], "--batch-size 'x' is not understood; it must be a whole number"),
        (["EXP", "batch_size=8:0.5"], "--batch-size '0.5' is not understood; it must be a whole number"),
        (["EXP", "learning_rate=log:a:b"], "is not a range; write learning_rate=log:LOW:HIGH"),
        (["EXP", "learning_rate=1:0.1"], "is not a range; write the lower bound first"),
        (["EXP", "wide=0:1"], "--wide '0' is not understood; it must be True or False"),
        (["EXP", "seed=1", "seed=2"], "seed is given twice"),
        (["EXP", "seed=1", "--seed", "2"], "seed is searched and given a value too"),
        (["EXP", "seed"], "'seed' does not list values"),
        (["EXP", "seed=1", "--metric", "test.loss"], "split='test' cannot be used for model selection"),
        (["EXP", "seed=1", "--metric", "loss"], "metric='loss' is not understood; write SPLIT.NAME"),
        (["EXP", "seed=1", "--metric", "validation.f1"], "metric='f1' is not measured; choose one of"),
        (["EXP", "seed=1", "--metric", "train.loss"], "split='train' is not evaluated; choose one of val"),
        (["EXP", "seed=1", "--method", "grid", "--num-trials", "5"], "num_trials=5 does not apply to a grid"),
        (["EXP", "num_epochs=1,2", "--method", "halving"], "halving divides num_epochs or num_steps"),
    ],
)
def test_mistakes_are_one_line(dl, path, tmp_path, argv, message):
    workdir = ["--workdir", str(tmp_path / "w")] if argv else []
    status, _, err = dl("sweep", *(path if word == "EXP" else word for word in argv), *workdir)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_another_sweep_or_folder_is_refused(grid, dl, tmp_path):
    _, argv, options = grid
    status, _, err = dl(*argv[:2], "learning_rate=0.01,0.4", *argv[3:], *options)
    assert (status, "holds another sweep (space: " in err) == (2, True)
    (tmp_path / "file").touch()
    status, _, err = dl(*argv, *options[:-1], str(tmp_path))
    assert (status, "is not empty and does not hold a sweep" in err) == (2, True)


def test_without_optuna_tpe_is_one_line(dl, path, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    words = ["sweep", path, "learning_rate=0.1:1", "--method", "tpe", "--workdir", str(tmp_path / "w")]
    status, _, err = dl(*words)
    assert status == 2
    assert "the method tpe needs Optuna; run pip install 'dl[search]'" in err


@pytest.mark.slow
def test_tpe_goes_on_where_it_stopped(dl, path, tmp_path):
    pytest.importorskip("optuna", reason="needs the extra: search")
    words = ["sweep", path, "learning_rate=log:1e-3:1.0", "--method", "tpe", "--mesh", "data=1"]
    runs = []
    for numbers, name in (["2"], "whole"), (["1", "2"], "in_parts"):
        for number in numbers:
            assert dl(*words, "--num-trials", number, "--workdir", str(tmp_path / name))[0] == 0
        runs.append(sweep_of(tmp_path / name))
    assert runs[0] == runs[1]
    assert len({trial["options"]["learning_rate"] for trial in runs[0]["trials"]}) == 2


def test_the_record_of_many_trials_is_not_written_for_each(tmp_path, mesh1, path, monkeypatch):
    experiment_fn = find_experiment(path)

    def refusing(point=0.0):
        if point == 135:
            raise KeyboardInterrupt
        if point:
            raise UserError(f"point={point} is refused")
        return experiment_fn(num_epochs=1)

    sizes = []
    write = Study.write
    monkeypatch.setattr(Study, "write", lambda *args: (sizes.append(len(args[1]["trials"])), write(*args)))
    space = {"point": [float(k) for k in range(200)]}
    how = {"method": "grid", "folder": tmp_path / "sweep", "mesh": mesh1, "console": Console(is_quiet=True)}
    with pytest.raises(KeyboardInterrupt):
        sweep(refusing, space, **how, together=1)
    assert sizes[:10] == list(range(10))  # a few trials are recorded at once
    assert sizes[-1] == 135  # none is lost
    assert sum(sizes) < 20 * 135
    rows = [{**row, "value": float(row["trial"])} for row in sweep_of(tmp_path / "sweep")["trials"]]
    table = table_of(rows, "validation loss")
    assert len(table.rows) == 100
    assert table.title == "The first 100 of 135 trials by validation loss; sweep.json has all"
