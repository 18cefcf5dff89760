"""Commands about one experiment before it is trained: layers, one batch, learning rates, augmentation."""

import dataclasses
from pathlib import Path
from typing import Annotated

from dl.cli.command import Call
from dl.cli.options import CommandOptions, ComputeOptions
from dl.errors import UserError
from dl.option_types import OutputFile, PositiveFloat, PositiveInt
from dl.ranges import Range
from dl.runs.console import print_table, save


def summary(call: Call) -> int:
    """Prints every layer with its shapes, parameters and forward FLOPs, for one example.

    The FLOPs of convolutions include the products with padding, as in published tables. A second column
    leaves these products out.
    """
    from dl.diagnostics.layers import experiment_layers, format_layers

    layers = experiment_layers(call.build())
    if not layers:
        raise UserError(
            "the loss of this experiment does not call a Linen module; there are no layers to show"
        )
    print_table(format_layers(layers, f"{layers[0].kind}, one example; a multiply-add is 2 FLOPs"))
    return 0


@dataclasses.dataclass(frozen=True)
class OverfitOptions(ComputeOptions):
    """Options of `overfit`.

    Attributes:
      steps: Largest number of updates.
      threshold: Loss that the training must reach. Default: the best possible loss + 5 % of the distance to
        the loss of the best constant output (autoencoder: 50 %, language model: 20 %).
    """

    steps: PositiveInt = 300
    threshold: Annotated[float, Range()] | None = None


def check_overfit(call: Call) -> int:
    """Trains on one batch only. If the experiment is correct, the model fits this batch almost perfectly.

    Augmentation is off, and dropout draws the same mask in each step. The optimizer is that of the
    experiment. The exit status is 1 if the loss stays above the threshold.
    """
    from dl.diagnostics.overfit import overfit  # the step

    options: OverfitOptions = call.own
    shown = {factor * 10**power for factor in (1, 2, 5) for power in range(7)} | {0}

    def watch(step: int, loss: float) -> None:
        if step in shown:
            print(f"step {step:>5,}  loss {loss:.5f}", flush=True)

    result = overfit(call.build(), options.steps, options.threshold, watch)
    last = f"loss {result.losses[-1]:.3g} on {result.num_examples} examples"
    steps = len(result.losses) - 1
    why = f" ({result.why})" if result.why else ""
    if result.has_passed:
        print(f"PASS: {last} after {steps:,} steps, below {result.threshold:.3g}{why}")
        return 0
    print(f"FAIL: {last} after {steps:,} steps, above {result.threshold:.3g}{why}; the likeliest causes:")
    for number, cause in enumerate(result.causes, 1):
        print(f"  {number}. {cause}")
    return 1


@dataclasses.dataclass(frozen=True)
class RateOptions(ComputeOptions):
    """Options of `lr-find`.

    Attributes:
      low: First learning rate.
      high: Last learning rate.
      steps: Number of updates from the first rate to the last.
      plot: PNG file of the loss against the learning rate. Default: no file.
    """

    low: PositiveFloat = 1e-6
    high: PositiveFloat = 10.0
    steps: PositiveInt = 100
    plot: OutputFile | None = None


def find_rate(call: Call) -> int:
    """Trains for a few steps while the learning rate grows.

    It suggests the rate at which the loss falls fastest. This is the learning-rate range test of Smith
    (2017). The exit status is 1 if the loss never falls.
    """
    from dl.diagnostics.learning_rate_finder import find_learning_rate, plot_rates  # the step

    options: RateOptions = call.own
    test = find_learning_rate(call.build(), options.low, options.high, options.steps)
    if not len(test.rates):
        print(
            "FAIL: the loss is not finite at the first step, before any update; to find the operation, run "
            "the experiment with --debug-nans"
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
      num_examples: Number of rows, each an example of the first training batch.
      num_draws: Number of augmented copies of each example. Copy 1 is what the model sees in epoch 1, copy 2
        in epoch 2, and so on.
      out: PNG file to write.
    """

    num_examples: PositiveInt = 8
    num_draws: PositiveInt = 7
    out: OutputFile = Path("augment.png")


def preview_augmentation(call: Call) -> int:
    """Writes a picture that shows examples before and after augmentation."""
    from dl.diagnostics.preview import augmented_examples, contact_sheet  # Pillow

    options: PreviewOptions = call.own
    stored, drawn = augmented_examples(call.build(), options.num_examples, options.num_draws)
    save(lambda file: contact_sheet(stored, drawn).save(file, "PNG"), options.out)
    return 0
