import enum
import inspect
import math
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from dl.cli.main import RunOptions
from dl.cli.options import parse, to_words
from dl.errors import UserError
from dl.option_types import BatchSize, Fraction, LearningRate, NumEpochs, PositiveFloat, PositiveInt, Seed
from dl.runs.find import find_experiment, known_experiments


def experiment(
    batch_size: PositiveInt = 128,
    learning_rate: PositiveFloat = 1e-3,
    num_epochs: PositiveInt | None = None,
    dropout: Fraction = 0.0,
    network: Literal["small", "large"] = "small",
    nesterov: bool = False,
    seed: Seed = 0,
):
    """An experiment.

    Args:
      batch_size: examples of an update.
    """


def read(*argv):
    return parse(experiment, RunOptions, argv, "prog")


def test_defaults_are_the_options():
    options, run = read()
    assert options == {
        "batch_size": 128,
        "learning_rate": 1e-3,
        "num_epochs": None,
        "dropout": 0.0,
        "network": "small",
        "nesterov": False,
        "seed": 0,
    }
    assert run == RunOptions()


def test_values_are_read_with_dashes_or_underscores():
    options, run = read("--batch_size=8", "--learning-rate", "1e-2", "--nesterov", "--log-every", "3")
    assert (options["batch_size"], options["learning_rate"], options["nesterov"]) == (8, 0.01, True)
    assert run.log_every == 3


def test_help_states_options_of_experiment_and_run(capsys):
    with pytest.raises(SystemExit) as exit_:
        read("--help")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for word in ("--batch-size", "examples of an update", "--workdir", "--mesh"):
        assert word in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch-sze", "3"], "no option --batch-sze; did you mean --batch-size?"),
        (["--learningrate=3"], "no option --learningrate; did you mean --learning-rate?"),
        (["--zzz"], "no option --zzz; --help"),
        (["--lr", "3"], "no option --lr; did you mean --learning-rate?"),
        (["stray"], "unexpected argument 'stray'"),
        (["--batch-size", "many"], "--batch-size 'many' is not understood; it must be a whole number"),
        (["--batch-size", "1.5"], "--batch-size '1.5' is not understood; it must be a whole number"),
        (["--num-epochs", "x"], "--num-epochs"),
        (["--learning-rate", "x"], "--learning-rate 'x' is not understood; it must be a number"),
        (["--batch-size"], "'--batch-size' needs a value"),
        (["--network", "huge"], "--network 'huge' is not understood; it must be one of small, large"),
        (["--batch-size", "0"], "--batch-size 0 is out of range; it must be at least 1"),
        (["--batch-size", "-4"], "--batch-size -4 is out of range"),
        (["--num-epochs", "0"], "--num-epochs 0 is out of range"),
        (["--learning-rate", "0"], "must be more than 0"),
        (["--learning-rate", "nan"], "--learning-rate nan is out of range"),
        (["--learning-rate", "inf"], "--learning-rate inf is out of range"),
        (["--dropout", "1.5"], "at least 0 and at most 1"),
        (["--seed", str(2**32)], "at most 4,294,967,295"),
        (["--log-every", "0"], "--log-every 0 is out of range"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        read(*argv)
    assert "\n" not in str(caught.value)


def test_a_whole_number_may_be_larger_than_any_float():
    assert read("--batch-size", "9" * 400)[0]["batch_size"] == int("9" * 400)
    with pytest.raises(UserError, match="Exceeds the limit") as caught:
        read("--batch-size", "9" * 5000)
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_signature_are_one_line():
    def no_default(batch_size: int):
        pass

    def no_annotation(batch_size=3):
        pass

    def taken(workdir: str = ""):
        pass

    for broken, message in (
        (no_default, "option batch_size of the experiment lacks a default"),
        (no_annotation, "option batch_size of the experiment lacks an annotation"),
        (taken, "option workdir of the experiment has the name of an option of every run"),
    ):
        with pytest.raises(UserError, match=message):
            parse(broken, RunOptions, [], "prog")


def help_of(capsys, experiment_fn):
    with pytest.raises(SystemExit):
        parse(experiment_fn, RunOptions, ["--help"], "prog")
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_an_option_that_the_docstring_does_not_document_has_the_help_of_its_type(capsys):
    def shared(batch_size: BatchSize = 8, num_epochs: NumEpochs | None = None, seed: Seed = 0, x: int = 1):
        """An experiment without documented options."""

    text = help_of(capsys, shared)
    assert "--batch-size INT Number of examples in each update. (default: 8)" in text
    assert "--num-epochs INT Number of passes over the training split. (default: None)" in text
    assert "Random seed of initialisation, batch order, dropout and augmentation. (default: 0)" in text
    assert "--x INT (default: 1)" in text


def test_help_shows_the_value_of_an_option_without_none(capsys):
    def limits(
        rate: LearningRate | None = None,
        mode: Literal["min", "max"] | None = None,
        place: Path | None = None,
        maybe: bool | None = None,
    ):
        """An experiment whose options may be left out."""

    text = help_of(capsys, limits)
    for shown in ("--rate FLOAT Peak", "--mode {min,max} (default: None)", "--place PATH (default: None)"):
        assert shown in text
    assert "--maybe {None,True,False}" in text
    options, _ = parse(limits, RunOptions, ["--rate", "None", "--mode", "min"], "prog")
    assert (options["rate"], options["mode"]) == (None, "min")


def test_the_docstring_of_an_experiment_wins_over_the_help_of_a_type(capsys):
    def own(batch_size: BatchSize = 8, learning_rate: LearningRate | None = None):
        """An experiment.

        Args:
          learning_rate: Learning rate of its own kind.
        """

    text = help_of(capsys, own)
    assert "Learning rate of its own kind. (default: None)" in text
    assert "Peak learning rate" not in text
    assert "Number of examples in each update." in text


@pytest.mark.parametrize("name", sorted(known_experiments()))
def test_the_help_of_every_option_of_an_experiment_is_a_sentence(name, capsys):
    experiment_fn = find_experiment(name)
    shown = help_of(capsys, experiment_fn).partition("show this help message and exit")[2]
    own = shown.partition("--data-dir")[0]
    parameters = inspect.signature(experiment_fn).parameters
    assert all(f"--{option.replace('_', '-')} " in own.replace(",", " ") for option in parameters)
    assert len(re.findall(r"[.] \(default: |[.] Default: [^-]*?[.](?= -|$)", own.strip())) == len(parameters)


class Shade(enum.Enum):
    LIGHT = "l"
    DARK = "d"


def of_all_kinds(
    hidden: tuple[int, ...] = (16,),
    window: tuple[float, float] = (0.0, 1.0),
    rate: float = 1e-3,
    flag: bool = False,
    maybe: bool | None = None,
    name: str = "x",
    number: int | None = 3,
    place: Path | None = None,
    shade: Shade = Shade.LIGHT,
):
    """Of each kind one."""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("hidden", value) for value in [(), (8,), (16, 8), (-1, -2)]),
        ("window", (-1.0, 2.5)),
        *(("rate", value) for value in [math.inf, -math.inf, math.nan, -1e-5, np.float32(0.5)]),
        *(("flag", value) for value in [True, False]),
        *(("maybe", value) for value in [True, False, None]),
        *(("name", value) for value in ["", "-a", "--name", "a b", "é=1", "None"]),
        *(("number", value) for value in [None, -7]),
        *(("place", value) for value in [None, Path("/a b/[1]"), Path("-x")]),
        ("shade", Shade.DARK),
    ],
)
def test_the_words_of_a_value_are_read_as_that_value(name, value):
    words = to_words(name, value, is_flag=name == "flag")
    options, _ = parse(of_all_kinds, RunOptions, words, "prog")
    assert options[name] == value or (math.isnan(value) and math.isnan(options[name]))


@pytest.mark.parametrize(
    "words", [["--place=~/a"], ["--place", "~/a"], ["--workdir=~/a"], ["--data-dir=~/a"]]
)
def test_the_home_folder_is_expanded_in_every_path(monkeypatch, words):
    monkeypatch.setenv("HOME", "/home/me")
    options, run = parse(of_all_kinds, RunOptions, words, "prog")
    assert Path("/home/me/a") in (options["place"], run.workdir, run.data_dir)


def test_a_home_folder_that_nobody_has_is_one_line():
    with pytest.raises(UserError, match="the home folder of ~nobody-has-it/a is not known"):
        parse(of_all_kinds, RunOptions, ["--workdir=~nobody-has-it/a"], "prog")
