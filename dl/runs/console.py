"""The output of a run: a progress bar in a terminal, otherwise one line for each epoch."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
from rich.console import Console as RichConsole
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from dl.errors import UserError
from dl.runs.streams import standard_output
from dl.system.files import replace_file, why_no_output
from dl.system.text import printable

BAR_REFRESH_SECONDS = 0.2
MIN_WIDTH = 160  # of a table that is not printed to a terminal, in characters


class Console:
    """The output of one run. It is silent on every process except the first.

    Attributes:
      is_live: whether a progress bar is shown, because the output is a terminal.
    """

    def __init__(self, is_quiet: bool = False):
        self._screen = RichConsole(
            file=standard_output(),
            quiet=is_quiet or jax.process_index() > 0,
            highlight=False,
            soft_wrap=True,
            # A notebook gets plain lines, because it does not support the progress bar and colours of a
            # terminal.
            force_jupyter=False,
            force_terminal=False if "ipykernel" in sys.modules else None,
        )
        self.is_live = self._screen.is_terminal and not is_quiet
        self._bar: Progress | None = None
        self._refreshed = 0.0

    def line(self, text: str) -> None:
        self._screen.print(text, markup=False)

    def facts(self, facts: Mapping[str, str]) -> None:
        """Prints labelled lines, one for each fact."""
        width = max(map(len, facts))
        for label, text in facts.items():
            self.line(f"  {label:<{width}}  {text}")

    def box(self, title: str, text: str) -> None:
        """Prints text in a box, so that it is not overlooked."""
        panel = Panel(Text(text), title=title, border_style="bold red")
        self._screen.print(panel, soft_wrap=False, width=min(100, self._screen.width))

    def notice(self, notice: str | None) -> None:
        """Prints the notice about the data, if there is one."""
        if notice:
            self.box("NOT THE DATA YOU MAY EXPECT", notice)

    def start(self, num_steps: int) -> None:
        """Shows the progress bar if there is a terminal."""
        if self.is_live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24 if self._screen.width >= 100 else 6),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._screen,
                auto_refresh=False,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("compiling", total=num_steps, figures="")
            self._bar.refresh()

    def progress(self, step: int, description: str, figures: Mapping[str, float]) -> None:
        """Updates the progress bar. It is drawn a few times per second at most."""
        if self._bar is None or time.monotonic() - self._refreshed < BAR_REFRESH_SECONDS:
            return
        self._refreshed = time.monotonic()
        self._bar.update(
            self._task,
            completed=step,
            description=description,
            # The unit is obvious beside a progress bar, and the line must fit 80 columns.
            figures=format_figures(figures).replace(" examples/s", "/s"),
        )
        self._bar.refresh()

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def format_figures(figures: Mapping[str, float]) -> str:
    """Returns metrics as text: `loss 0.0123  accuracy 98.76 %  4,312 examples/s`."""
    # jit returns the keys of a dict in alphabetical order, but a reader looks for the loss first.
    names = sorted(figures, key="loss".__ne__)
    return "  ".join(_format(name, figures[name]) for name in names)


def _format(name: str, value: float) -> str:
    if name == "examples_per_second":
        return f"{value:,.0f} examples/s"
    if name == "accuracy":
        return f"accuracy {value:.2%}".replace("%", " %")
    return f"{name.replace('_', ' ')} {format_value(value)}"


def format_value(value: float) -> str:
    """Returns a metric with four decimals, or with four significant digits if it is tiny or huge."""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e6 or not value else f"{value:.4g}"


def format_count(count: float) -> str:
    """Returns a large count with its prefix: `2.77 M`."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {prefix}"
    return f"{count:.0f} "


def format_epochs(epochs: float) -> str:
    """Returns a number of epochs: `5`, `6.88`, `0.0091`."""
    if not math.isfinite(epochs):
        return "nan"
    return f"{epochs:,.0f}" if epochs >= 100 or epochs == round(epochs) else f"{epochs:.3g}"


def print_table(table: RichTable) -> None:
    """Prints a table: as wide as the terminal, or as wide as needed if there is none."""
    console = RichConsole(highlight=False)
    if not console.is_terminal:
        console = RichConsole(highlight=False, width=max(console.width, MIN_WIDTH))
    console.print(table)


def save(write: Callable[[BinaryIO], Any], path: Path) -> None:
    """Calls `write` with a new file, replaces `path` by this file, and prints its name.

    Raises:
      UserError: the file cannot be written. An earlier file stays as it was.
    """
    with writing(path):
        if reason := why_no_output(path):
            raise UserError(f"{path} cannot be written ({reason}); choose another file")
        replace_file(path, write)


def save_text(text: str, path: Path) -> None:
    """Writes text and an end of line, as `save` does."""
    save(lambda file: file.write(f"{text}\n".encode("utf-8", "backslashreplace")), path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context that writes a file: prints its name at the end, and turns an OSError into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); choose another file"
        ) from None
    print(f"wrote {printable(path)}")
