"""Small plots as numbers that a template draws as SVG. The page sets colours, fonts and dark mode.

A plot is 360 units wide, so that its letters are legible at the width of a phone.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 360, 240
RIGHT, TOP, BOTTOM = 340, 10, 204  # right of RIGHT there is space for half of a tick label
LETTER = 6.4  # the widest digit, in the units of the plot
_NARROWEST = 46  # least width left of the axis
MAX_POINTS = 200  # points of a line
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
HUGE = 1e300  # the most that is drawn, so that the length of an axis is a number
NUM_STYLES = 10  # styles in the style sheet of the page, each with a colour and a dash


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as text; the first column names the rows.

    Attributes:
      title: the title of the table.
      columns: the names of the columns.
      rows: the rows, with one string for each column.
      marked: the numbers of the rows that are marked.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Series:
    """A line, or points, in the coordinates of the data.

    Attributes:
      name: the name in the legend.
      x: the horizontal coordinates.
      y: the vertical coordinates. Points that are not finite are left out.
      style: the number of a style.
      has_dots: whether each point is marked.
      has_line: whether points are joined.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    style: int = 0
    has_dots: bool = False
    has_line: bool = True


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A series in the coordinates of the plot: `points` as SVG writes them, and the same as pairs."""

    name: str
    style: int
    points: str
    dots: Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot in the form that a template draws.

    Attributes:
      title: the title of the plot.
      description: text about the plot, for readers who cannot see it.
      x_label: the label of the horizontal axis, with its unit.
      y_label: the label of the vertical axis.
      left: the position of the vertical axis. Its label and ticks are left of it.
      x_ticks: position and text of each tick of the horizontal axis.
      y_ticks: position and text of each tick of the vertical axis.
      series: the lines.
      bars: x, y, width and height of each.
      table: the same in numbers.
    """

    title: str
    description: str
    x_label: str
    y_label: str
    left: float
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    series: Sequence[Drawn]
    bars: Sequence[tuple[float, float, float, float]]
    table: Table | None


def plot(
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    has_whole_x: bool = False,
    bars: Sequence[tuple[float, float, float]] = (),
    table: Table | None = None,
) -> Plot:
    """Returns a plot of lines and bars.

    Args:
      title: the title of the plot.
      description: text about the plot, for readers who cannot see it.
      x_label: the label of the horizontal axis.
      y_label: the label of the vertical axis.
      series: lines, each thinned to `MAX_POINTS`.
      x_range: the range of the horizontal axis. `None` means the range of the data.
      y_range: the range of the vertical axis. `None` means the range of the data, from 0 if they are near 0.
      has_whole_x: whether the ticks of the horizontal axis are integers.
      bars: left edge, right edge and height of each.
      table: the same in numbers.
    """
    finite = [_finite(line) for line in series]
    xs = np.concatenate([x for x, _ in finite]) if finite else np.empty(0)
    ys = np.concatenate([y for _, y in finite]) if finite else np.empty(0)
    x_low, x_high = x_range or _range(xs)
    y_low, y_high = y_range or _range(ys, from_zero=True)

    y_ticks = ticks(y_low, y_high)
    x_ticks = ticks(x_low, x_high, least=1.0 if has_whole_x else 0.0)
    # A tick label ends 5 units before the axis, and the label of the axis needs 16 units.
    left = max(_NARROWEST, 21 + LETTER * max((len(text) for _, text in y_ticks), default=0))

    def place_x(x: np.ndarray | float) -> np.ndarray:
        return left + (RIGHT - left) * (np.asarray(x, np.float64) - x_low) / (x_high - x_low)

    def place_y(y: np.ndarray | float) -> np.ndarray:
        share = np.clip((np.asarray(y, np.float64) - y_low) / (y_high - y_low), 0, 1)
        return BOTTOM + (TOP - BOTTOM) * share

    drawn = []
    for line, (x, y) in zip(series, finite, strict=True):
        keep = _thinned(len(x))
        points = [
            (round(float(a), 1), round(float(b), 1)) for a, b in zip(place_x(x), place_y(y), strict=True)
        ]
        points = [points[k] for k in keep]
        text = " ".join(f"{a:g},{b:g}" for a, b in points) if line.has_line else ""
        drawn.append(Drawn(line.name, line.style % NUM_STYLES, text, points if line.has_dots else ()))
    return Plot(
        title,
        description,
        x_label,
        y_label,
        round(left, 1),
        [(round(float(place_x(tick)), 1), text) for tick, text in x_ticks],
        [(round(float(place_y(tick)), 1), text) for tick, text in y_ticks],
        drawn,
        [_bar(float(place_x(a)), float(place_x(b)), float(place_y(h)), BOTTOM) for a, b, h in bars],
        table,
    )


def ticks(low: float, high: float, most: int = 7, least: float = 0.0) -> list[tuple[float, str]]:
    """Returns round numbers in [low, high], at most about `most`, a power of ten times 1, 2 or 5 apart.

    Their distance is at least `least`, and no two have the same text.
    """
    rough = max((high - low) / (most - 1), least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    values = [k * step for k in range(first, last + 1)]
    texts = [format_tick(value, step) for value in values]
    return list(zip(values, texts, strict=True))


def format_tick(value: float, step: float) -> str:
    """Returns a round number as short text that differs from the next number: `0.05`, `12k`.

    Args:
      value: the number.
      step: the difference to the next number.
    """
    if value and not 1e-4 <= max(abs(value), step) < 1e15:
        digits = max(0, math.floor(math.log10(abs(value))) - math.floor(math.log10(step) + 1e-9))
        return f"{value:.{min(digits, 15)}e}"
    size, prefix = 1.0, ""
    if abs(value) >= 10_000:
        size, prefix = next(pair for pair in _PREFIXES if abs(value) >= pair[0])
    decimals = min(max(0, -math.floor(math.log10(step / size) + 1e-9)), 15)
    text = f"{value / size:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{'0' if text == '-0' else text}{prefix}"


def _bar(left: float, right: float, top: float, bottom: float) -> tuple[float, float, float, float]:
    return round(left, 1), round(top, 1), round(right - left, 1), round(bottom - top, 1)


def _finite(line: Series) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    keep = (np.abs(x) < HUGE) & (np.abs(y) < HUGE)  # False for NaN
    return x[keep], y[keep]


def _range(values: np.ndarray, from_zero: bool = False) -> tuple[float, float]:
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if from_zero and 0 <= low < high / 2:
        low = 0.0
    pad = (high - low) * 0.03 or abs(high) * 0.1 or 1.0
    return (low if low == 0 and high > 0 else low - pad), high + pad


def _thinned(size: int) -> np.ndarray:
    if size <= MAX_POINTS:
        return np.arange(size)
    return np.unique(np.linspace(0, size - 1, MAX_POINTS).round().astype(int))
