"""Commands about one experiment, without running it: layers, one batch, learning rates, augmentation.

A command is a function, its own options, and a line in `COMMANDS`; its work has a module of its own.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from dl.cli.options import CommandOptions
from dl.diagnostics.layers import experiment_layers, format_layers
from dl.diagnostics.learning_rate_finder import find_learning_rate, plot_rates
from dl.diagnostics.overfit import overfit
from dl.errors import UserError
from dl.experiment import Experiment
from dl.option_types import OutputFile, PositiveFloat, PositiveInt
from dl.ranges import Range
from dl.runs.console import print_table, save


def summary(experiment: Experiment, options: CommandOptions) -> int:
    """Prints every layer with its shapes, parameters and forward FLOPs, for one example.

    The FLOPs of convolutions count products with padding, as published tables do; those without stand beside.
    """
    layers = experiment_layers(experiment)
    if not layers:
        raise UserError("the loss of this experiment calls no Linen module; there are no layers to show")
    print_table(format_layers(layers, f"{layers[0].kind}, one example; a multiply-add is 2 FLOPs"))
    return 0


@dataclasses.dataclass(frozen=True)
class OverfitOptions(CommandOptions):
    """Options of `overfit`.

    Attributes:
      steps: updates at most.
      threshold: the loss to fall under, in its own unit. None: 5 % of what one batch offers to learn, that is
        of the way from the best possible outputs to the best ones that ignore the input; 50 % for an
        autoencoder, 20 % for a language model.
    """

    steps: PositiveInt = 300
    threshold: Annotated[float, Range()] | None = None


def check_overfit(experiment: Experiment, options: OverfitOptions) -> int:
    """Trains on one batch: a sound experiment brings its loss down to the lowest. Exit status 1 if not.

    Augmentation is off, and dropout draws the same in each step; the optimizer is the experiment's own.
    """
    shown = {factor * 10**power for factor in (1, 2, 5) for power in range(7)} | {0}

    def watch(step: int, loss: float) -> None:
        if step in shown:
            print(f"step {step:>5,}  loss {loss:.5f}", flush=True)

    result = overfit(experiment, options.steps, options.threshold, watch)
    last = f"loss {result.losses[-1]:.3g} on {result.num_examples} examples"
    steps = len(result.losses) - 1
    why = f" ({result.why})" if result.why else ""
    if result.has_passed:
        print(f"PASS: {last} after {steps:,} steps, under {result.threshold:.3g}{why}")
        return 0
    print(f"FAIL: {last} after {steps:,} steps, not under {result.threshold:.3g}{why}; the likeliest causes:")
    for number, cause in enumerate(result.causes, 1):
        print(f"  {number}. {cause}")
    return 1


@dataclasses.dataclass(frozen=True)
class RateOptions(CommandOptions):
    """Options of `lr-find`.

    Attributes:
      low: the first rate.
      high: the last rate.
      steps: from one to the other.
      plot: a PNG file to draw the curve to.
    """

    low: PositiveFloat = 1e-6
    high: PositiveFloat = 10.0
    steps: PositiveInt = 100
    plot: OutputFile | None = None


def find_rate(experiment: Experiment, options: RateOptions) -> int:
    """Trains a little while the learning rate grows, and suggests where the loss falls fastest.

    Exit status 1 if it never fell.
    """
    test = find_learning_rate(experiment, options.low, options.high, options.steps)
    if not len(test.rates):
        print(
            "FAIL: the loss is not finite at the first step, before any update; the model, the loss or the "
            "data make it so: run the experiment with --debug-nans"
        )
        return 1
    every = max(len(test.rates) // 12, 1)
    for rate, loss in list(zip(test.rates, test.smoothed, strict=True))[::every]:
        print(f"rate {rate:8.2e}  loss {loss:.4f}")
    if test.has_diverged:
        print(f"the loss exploded after rate {test.rates[-1]:.2e}")
    if options.plot is not None:
        figure = plot_rates(test, "learning-rate range test")
        save(lambda file: figure.savefig(file, dpi=120, format="png"), options.plot)
    if test.suggested is None:
        print(
            f"FAIL: the loss never fell between {options.low:g} and {options.high:g}; widen the range, or "
            "try `python -m dl overfit`"
        )
        return 1
    print(
        f"suggested learning rate {test.suggested:.2g}, the steepest descent; the loss falls from "
        f"{test.low:.2g} and is lowest at {test.high:.2g}"
    )
    return 0


@dataclasses.dataclass(frozen=True)
class PreviewOptions(CommandOptions):
    """Options of `augment-preview`.

    Attributes:
      num_examples: rows, from the first training batch.
      num_draws: columns beside the stored image; one an epoch.
      out: the PNG file to write.
    """

    num_examples: PositiveInt = 8
    num_draws: PositiveInt = 7
    out: OutputFile = Path("augment.png")


def preview_augmentation(experiment: Experiment, options: PreviewOptions) -> int:
    """Draws examples as stored, and as the first epochs of the training would see them."""
    from dl.diagnostics.preview import augmented_examples, contact_sheet  # Pillow

    stored, drawn = augmented_examples(experiment, options.num_examples, options.num_draws)
    save(lambda file: contact_sheet(stored, drawn).save(file, "PNG"), options.out)
    return 0


@dataclasses.dataclass(frozen=True)
class Command:
    """A command about one experiment.

    Attributes:
      run: from the experiment and the options to the exit status; its docstring is the help text.
      options: a dataclass derived from `CommandOptions`, with a default for each field.
    """

    run: Callable[[Experiment, Any], int]
    options: type[CommandOptions]


COMMANDS = {
    "summary": Command(summary, CommandOptions),
    "overfit": Command(check_overfit, OverfitOptions),
    "lr-find": Command(find_rate, RateOptions),
    "augment-preview": Command(preview_augmentation, PreviewOptions),
}
