from typing import Literal

import pytest

from dl.command import RunOptions
from dl.errors import UserError
from dl.options import Fraction, PositiveFloat, PositiveInt, Seed, parse


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
        (["--network", "huge"], "'huge'.*'small', 'large'"),
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
        (no_default, "option batch_size of the experiment has no default"),
        (no_annotation, "option batch_size of the experiment has no annotation"),
        (taken, "option workdir of the experiment is one of every run already"),
    ):
        with pytest.raises(UserError, match=message):
            parse(broken, RunOptions, [], "prog")
