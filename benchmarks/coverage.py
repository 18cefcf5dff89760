"""How often the intervals of this project hold the truth, and how often its tests reject a true hypothesis.

    python -m benchmarks.coverage [NUM_SIMULATIONS]

Each row repeats an experiment with a known truth. An interval that states 95 % must hold the truth in 93 to
97 % of the repetitions, a test at 5 % must reject a true hypothesis in 6 % at most, both give or take what so
many repetitions leave open. Exits with status 1 where one does not. With 4,000 about five minutes on a core.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dl.errors import UserError
from dl.evaluation.intervals import Interval, bootstrap, t_interval, wilson
from dl.evaluation.paired import mcnemar, newcombe_paired, paired_permutation, paired_ratio, paired_t
from dl.evaluation.spread import Spread
from dl.studies.power_law import PowerLaw, fit, forecast, lack_of_fit

NUM_SIMULATIONS = 4_000
STATED = (0.93, 0.97)
LEVEL = 0.05
MOST_FALSE_POSITIVES = 0.06
Random = np.random.Generator


class Check(NamedTuple):
    """One row.

    Attributes:
      what: the interval or the test.
      setting: what is simulated.
      once: one repetition: whether the interval held the truth, or the test rejected.
      low: the smallest share of repetitions that is right.
      high: the largest one.
    """

    what: str
    setting: str
    once: Callable[[Random], bool]
    low: float = STATED[0]
    high: float = STATED[1]


def checks() -> Iterator[Check]:
    """Yields every interval that is stated as one of 95 %, and every paired test."""
    yield from _of_examples()
    yield from _of_seeds()
    yield from _of_pairs()
    yield from _of_curves()


def _of_examples() -> Iterator[Check]:
    # Counts are whole numbers, so that the coverage jumps from share to share; what can be 95 % is its mean
    # over the shares (Agresti & Coull 1998).
    for num in (20, 100, 1_000, 10_000):
        for low, high in ((0.01, 0.99), (0.9, 0.99)):

            def share(random: Random, num: int = num, low: float = low, high: float = high) -> bool:
                p = random.uniform(low, high)
                return holds(_wilson(int(random.binomial(num, p)), num), p)

            yield Check("Wilson, a share", f"{num:,} examples, shares {low} to {high}", share)
    for num in (50, 200, 2_000):

        def tokens(random: Random, num: int = num) -> bool:
            lengths_N = random.integers(10, 60, num)
            totals_N = random.binomial(lengths_N, random.beta(8, 2, num))
            return holds(spread_interval(totals_N, lengths_N), 0.8)

        yield Check("effective sample size, token accuracy", f"{num:,} sequences of 10 to 59 tokens", tokens)

        def token_loss(random: Random, num: int = num) -> bool:
            lengths_N = random.integers(10, 60, num)
            of_sequence_N = random.gamma(4, 0.5, num)
            return holds(spread_interval(random.gamma(lengths_N, of_sequence_N), lengths_N), 2.0)

        yield Check("clustered Student, token loss", f"{num:,} sequences of 10 to 59 tokens", token_loss)

        def squares(random: Random, num: int = num) -> bool:
            return holds(spread_interval(random.normal(size=num) ** 2, np.ones(num)), 1.0)

        yield Check("Student over examples, squared error", f"{num:,} examples", squares)

    def root(random: Random) -> bool:
        errors_N, seed = random.normal(size=200), int(random.integers(2**31))
        return holds(bootstrap(root_mean_square, errors_N, num_resamples=999, seed=seed), 1.0)

    yield Check("bootstrap, root of the mean squared error", "200 examples", root)


def _of_seeds() -> Iterator[Check]:
    for num in (2, 3, 5, 10):

        def seeds(random: Random, num: int = num) -> bool:
            return holds(t_interval(random.normal(2.0, 0.3, num)), 2.0)

        yield Check("Student over seeds", f"{num} seeds", seeds)

        def shares(random: Random, num: int = num) -> bool:
            return holds(t_interval(random.beta(970, 30, num), is_share=True), 0.97)

        yield Check("Student over seeds, within [0, 1]", f"{num} seeds of an accuracy of 0.97", shares)


def _of_pairs() -> Iterator[Check]:
    for num, discordant, to_a in (
        (10_000, 0.002, 0.9),
        (10_000, 0.02, 0.95),
        (10_000, 0.02, 0.5),
        (1_000, 0.05, 0.9),
        (500, 0.2, 0.7),
    ):
        shares = (discordant * to_a, discordant * (1 - to_a), 0.9 - discordant, 0.1)
        setting = f"{num:,} examples, {100 * discordant:g} % differ, {100 * to_a:g} % of these on one side"

        def accuracies(random: Random, num: int = num, shares: tuple[float, ...] = shares) -> bool:
            counts = [int(count) for count in random.multinomial(num, shares)]
            return holds(newcombe_paired(*counts), shares[0] - shares[1])

        yield Check("Newcombe, difference of accuracies", setting, accuracies)
    for num in (50, 1_000):

        def losses(random: Random, num: int = num, gap: float = 0.1) -> bool:
            return holds(paired_ratio(*_pair_of_losses(random, num, gap)).interval, gap)

        def no_difference(random: Random, num: int = num) -> bool:
            return paired_ratio(*_pair_of_losses(random, num, 0.0)).p_value <= LEVEL

        setting = f"{num:,} sequences"
        yield Check("paired t over examples, difference of losses", setting, losses)
        yield Check("paired t over examples, the test", setting, no_difference, 0.0, MOST_FALSE_POSITIVES)
    for num, discordant in ((200, 0.1), (10_000, 0.02)):

        def coins(random: Random, num: int = num, discordant: float = discordant) -> bool:
            # Half of those on which they differ come first, then the other half, then those both have right.
            u_N = random.random(num)
            a_N = (u_N < discordant / 2) | ((u_N >= discordant) & (u_N < 0.8))
            return mcnemar(a_N, (u_N >= discordant / 2) & (u_N < 0.8)).p_value <= LEVEL

        setting = f"{num:,} examples, {100 * discordant:g} % differ"
        yield Check("McNemar, exact", setting, coins, 0.0, MOST_FALSE_POSITIVES)
    for num in (3, 5, 10):
        for test in (paired_t, paired_permutation):

            def seeds(random: Random, num: int = num, test: Callable[..., float] = test) -> bool:
                common = random.normal(size=num)
                return test(common + random.normal(size=num), common + random.normal(size=num)) <= LEVEL

            what = "paired t over seeds" if test is paired_t else "sign flips over seeds"
            yield Check(what, f"{num} seeds", seeds, 0.0, MOST_FALSE_POSITIVES)


def _of_curves() -> Iterator[Check]:
    sizes_S = np.array([72, 144, 287, 718, 1437])
    laws = PowerLaw(5.0, 0.5, 0.02), PowerLaw(2.0, 0.35, 0.0)
    noises: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "scatter of 0.01": lambda errors: np.full_like(errors, 0.01),
        "scatter of 5 %": lambda errors: 0.05 * errors,
    }
    for law in laws:
        for num in (2, 3, 5):
            for said, noise in noises.items():

                def drawn(
                    random: Random,
                    law: PowerLaw = law,
                    num: int = num,
                    noise: Callable[[np.ndarray], np.ndarray] = noise,
                ) -> np.ndarray:
                    errors_S = law(sizes_S)
                    return (errors_S + noise(errors_S) * random.normal(size=(num, len(sizes_S)))).T

                def ahead(
                    random: Random, law: PowerLaw = law, drawn: Callable[..., np.ndarray] = drawn
                ) -> bool:
                    return holds(forecast(sizes_S, drawn(random), 2 * 1437), float(law(2 * 1437)))

                def rejected(random: Random, drawn: Callable[..., np.ndarray] = drawn) -> bool:
                    errors_SR = drawn(random)
                    return lack_of_fit(fit(sizes_S, errors_SR.mean(1)), sizes_S, errors_SR).p_value < LEVEL

                setting = f"{law.scale:g} n^-{law.exponent:g} + {law.floor:g}, {num} seeds, {said}"
                # Two seeds leave one degree of freedom for each variance: the interval is wider than it says.
                high = 1.0 if num == 2 else STATED[1]
                yield Check("forecast of a learning curve", setting, ahead, high=high)
                if num == 3:
                    yield Check("lack of fit", setting, rejected, 0.0, MOST_FALSE_POSITIVES)


def holds(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def spread_interval(totals_N: np.ndarray, weights_N: np.ndarray) -> Interval:
    found = Spread.of(totals_N, weights_N).interval()
    assert found is not None
    return found[0]


def root_mean_square(errors_N: np.ndarray) -> float:
    return float(np.sqrt((errors_N**2).mean()))


@functools.cache
def _wilson(successes: int, trials: int) -> Interval:
    return wilson(successes, trials)


def _pair_of_losses(random: Random, num: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns totals and weights of two models on the same sequences; the first loses `gap` a token more."""
    lengths_N = random.integers(10, 60, num)
    common_N = random.gamma(4, 0.5, num)
    rows = [
        np.stack([lengths_N * (common_N + more + 0.2 * random.normal(size=num)), lengths_N], 1)
        for more in (gap, 0.0)
    ]
    return rows[0], rows[1]


def measure(check: Check, num_simulations: int, seed: int = 0) -> tuple[float, bool]:
    """Returns the share of the repetitions, and whether it is one that is right."""
    random = np.random.default_rng(seed)
    share = sum(check.once(random) for _ in range(num_simulations)) / num_simulations
    # Three standard errors of a share at the bounds.
    low, high = (
        bound + sign * 3 * np.sqrt(bound * (1 - bound) / num_simulations)
        for bound, sign in ((check.low, -1), (check.high, 1))
    )
    return share, bool(low <= share <= high)


def main(argv: list[str]) -> int:
    """Prints a table in Markdown; returns the exit status."""
    try:
        num_simulations = int(argv[0]) if argv else NUM_SIMULATIONS
        if num_simulations < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"{argv[0]!r} is not a number of simulations; write one, such as 4000") from None
    start, wrong = time.monotonic(), []
    print(f"| interval or test | setting | of {num_simulations:,} | must be |")
    print("|---|---|---:|---:|")
    for check in checks():
        share, is_right = measure(check, num_simulations)
        mark = "" if is_right else " **wrong**"
        bounds = f"{check.low:.0%} to {check.high:.0%}".replace("%", " %")
        print(f"| {check.what} | {check.setting} | {100 * share:.1f} %{mark} | {bounds} |", flush=True)
        if not is_right:
            wrong.append(check)
    print(f"\n{len(wrong)} wrong, {time.monotonic() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
