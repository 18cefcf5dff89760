"""The comparison with other frameworks: its numbers, its table, and that it refuses another network."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.peers import ours, plot
from benchmarks.peers.__main__ import main
from benchmarks.peers.commands import FASTEST, SAME, Commands, command_table
from benchmarks.peers.contestants import ALLOCATOR, OURS, PEERS, Contestant, missing, variants
from benchmarks.peers.networks import NETWORKS
from benchmarks.peers.reference import Different, Reference
from benchmarks.peers.rounds import Comparison
from benchmarks.peers.table import ratio, ratios, settings, table
from dl.cli.exit_status import exit_status
from dl.training.state import num_params

ROOT = Path(__file__).parent.parent.parent
NUM_PARAMETERS = {  # of the docstrings of the experiments, and of the papers
    "mlp_342": 26,
    "mnist_mlp": 784 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10,
    "pyramid": 298_186,
    "classic": 2_770_634,
    "net_sgd": 843_658,
    "cifar10_net": 8_278_658,
    "resnet18": 11_173_962,
    "mobilenetv2": 2_223_872 + 1280 * 10 + 10,
}


def found(ours=(10.0, 12.0, 11.0), best=(20.0, 24.0, 22.0), **more):
    rates = {OURS: list(ours), "PyTorch eager": [5.0, 6.0, 5.5], "PyTorch compiled": list(best)}
    made = Comparison(
        "classic",
        2_770_634,
        rates,
        dict.fromkeys(rates, 2**30),
        {OURS: OURS, "PyTorch eager": "PyTorch", "PyTorch compiled": "PyTorch"},
    )
    return dataclasses.replace(made, **more)


def test_a_ratio_is_that_of_the_medians_of_the_same_rounds():
    theirs = [10.0, 20.0, 40.0, 80.0]  # the machine becomes faster; both do
    interval = ratio([5.0, 10.0, 20.0, 40.0], theirs)
    assert interval.estimate == 0.5
    assert (interval.low, interval.high) == (0.5, 0.5)


def test_an_interval_contains_the_ratio_and_grows_with_the_spread():
    rng = np.random.default_rng(0)
    narrow = ratio(rng.normal(100, 1, 9), rng.normal(100, 1, 9))
    wide = ratio(rng.normal(100, 20, 9), rng.normal(100, 20, 9))
    assert narrow.low <= narrow.estimate <= narrow.high
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_a_single_round_has_a_ratio():
    assert ratio([3.0], [2.0]).estimate == 1.5


def test_the_best_settings_of_a_framework_count():
    made = found()
    assert made.best_of("PyTorch") == "PyTorch compiled"
    assert made.best_of("Keras") is None
    assert ratios(made)["PyTorch"].estimate == ratios(made)["best"].estimate == 0.5


def test_the_best_of_all_is_the_one_with_the_smallest_ratio():
    made = found()
    made.rates["Keras jax jitted"], made.framework_of["Keras jax jitted"] = [44.0] * 3, "Keras"
    assert ratios(made)["best"].estimate == 0.25


def test_the_table_has_medians_ratios_and_memory():
    text = table([found()])
    assert "| classic | 128 | 11 | 22 | - | 0.50 (0.50 to 0.50) | - | 1,024 / 1,024 / - |" in text


def test_the_settings_name_who_was_left_out():
    text = settings([found(left_out={"Keras tensorflow": "it took more than 300 s"})])
    assert "PyTorch compiled" in text
    assert "left out: Keras tensorflow (it took more than 300 s)" in text


def test_a_comparison_without_peers_has_a_table_and_a_plot():
    alone = Comparison("classic", 1, {OURS: [1.0]}, {OURS: 1}, {OURS: OURS})
    assert "| 1 | - | - | - | - |" in table([alone])
    assert plot.plot_ratios([alone, found()]).axes


def test_the_table_of_commands_has_ratios_of_the_whole_time():
    made = Commands(
        {
            SAME: {"cold": [60.0, 62.0, 61.0], "warm": [30.0]},
            FASTEST: {"cold": [12.2], "warm": [6.0]},
            "PyTorch": {"cold": [122.0], "warm": [60.0]},
        },
        {
            SAME: [{"validation": 0.981, "test": 0.98, "epochs": 2}],
            FASTEST: [{"validation": 0.981, "test": 0.98, "epochs": 5}],
            "PyTorch": [{"test": 0.979, "epochs": 3}],
        },
    )
    text = command_table(made)
    assert f"| {SAME} | 61.0 | 30.0 | 98.00 % | 2 |" in text
    assert "| PyTorch | 122.0 (0.50, 0.10) | 60.0 (0.50, 0.10) | 97.90 % | 3 |" in text
    assert plot.plot_commands(made.seconds).axes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_of_dl_are_those_of_the_experiments(name):
    experiment = ours.experiment_of(name)
    batch = {
        "index": jax.ShapeDtypeStruct((2,), "int32"),
        "mask": jax.ShapeDtypeStruct((2,), "bool"),
        **{k: jax.ShapeDtypeStruct((2, *v.shape), v.dtype) for k, v in experiment.data.train.spec.items()},
    }
    params = jax.eval_shape(experiment.init, jax.random.key(0), batch)["params"]
    assert num_params(params) == NUM_PARAMETERS.get(name, num_params(params))


def test_only_the_peers_get_the_setting_of_the_allocator():
    before = {**ALLOCATOR, "PATH": "/bin"}

    def of(*words):
        return Contestant(*words).environment(before, 2, "/cache")

    assert of("PyTorch", "eager").items() >= ALLOCATOR.items()
    assert not of("PyTorch", "eager", False).keys() & ALLOCATOR
    assert not of(OURS, "").keys() & ALLOCATOR
    assert of("Keras", "jax jitted")["KERAS_BACKEND"] == "jax"


def test_variants_suit_the_network():
    words = [str(one) for one in variants(NETWORKS["mnist_mlp"], "PyTorch")]
    assert words == ["PyTorch eager", "PyTorch compiled"]
    assert len(variants(NETWORKS["classic"], "PyTorch")) == 4
    assert "Keras jax" in map(str, variants(NETWORKS["classic"], "Keras", with_unjitted=True))


@pytest.fixture(scope="module")
def reference():
    return ours.make_reference("mlp_342")


def test_the_reference_survives_its_file(reference, tmp_path):
    reference.save(tmp_path / "reference.npz")
    again = Reference.load(tmp_path / "reference.npz")
    assert (again.num_parameters, again.losses) == (26, reference.losses)
    assert again.param("Dense_0/kernel").tobytes() == reference.param("Dense_0/kernel").tobytes()
    assert again.rows.shape == (4, 200)


def test_another_network_is_refused(reference):
    losses = list(reference.losses)
    reference.check(26, losses)
    with pytest.raises(Different, match="27 parameters instead of 26"):
        reference.check(27, losses)
    with pytest.raises(Different, match="after 0 steps"):
        reference.check(26, [losses[0] + 2e-4, *losses[1:]])
    with pytest.raises(Different, match="after 3 steps"):
        reference.check(26, [*losses[:3], losses[3] - 2e-3])
    with pytest.raises(Different):
        reference.check(26, [*losses[:3], float("nan")])


@pytest.mark.filterwarnings("ignore")  # their warnings are not ours
def test_a_perceptron_in_torch_is_the_same_and_a_changed_one_is_not(reference):
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    from benchmarks.peers.with_torch import Training

    def train(of):
        training = Training(NETWORKS["mlp_342"], of, is_compiled=False, is_channels_last=False)
        return training.num_parameters, training.losses(of.rows)

    reference.check(*train(reference))
    changed = {**reference.weights, "params/Dense_0/kernel": 1.1 * reference.param("Dense_0/kernel")}
    with pytest.raises(Different, match="after 0 steps"):
        reference.check(*train(dataclasses.replace(reference, weights=changed)))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["resnet19"], "'resnet19' is not a network; choose from mlp_342"),
        (["--rounds", "0"], "--rounds 0 is not a number of rounds"),
        (["--seconds", "-1"], "--seconds -1 is not the time of a turn"),
        (["--plot", "plot.txt"], "plot.txt is not the name of a plot"),
        (["--json", "no/such/folder/found.json"], "no/such/folder/found.json cannot be written"),
    ],
)
def test_a_mistake_is_one_line(words, text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peers", *words])
    assert exit_status(main) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_comparison_in_one_command(tmp_path):
    words = ["mlp_342", "--rounds", "2", "--seconds", "0.1"]
    files = ["--json", str(tmp_path / "found.json"), "--plot", str(tmp_path / "found.png")]
    command = [sys.executable, "-m", "benchmarks.peers", *words, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    made = json.loads((tmp_path / "found.json").read_text())["networks"][0]
    assert not made["refused"]
    assert len(made["rates"][OURS]) == 2
    assert (tmp_path / "found.png").stat().st_size > 1000
    for framework in PEERS:
        assert (framework in made["framework_of"].values()) == (not missing(framework))
        assert (f"{framework} is left out" in done.stdout) == bool(missing(framework))
