"""Prices of accelerators: a small dated table that a user can replace."""

import dataclasses
import importlib.resources
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dl.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prices:
    """A table of prices.

    Attributes:
      date: the day on which they were read, as `2026-11-26`.
      currency: such as `USD`.
      per_hour: price of one device for one hour, by its key in the table of hardware.
    """

    date: str
    currency: str
    per_hour: Mapping[str, float]


def read_prices(path: Path | None = None) -> Prices:
    """Returns the prices of a TOML file with `date`, `currency` and the table `per_hour`.

    Args:
      path: the file. `None` means the table of this package.

    Raises:
      UserError: the file cannot be read, or is not of this form.
    """
    if path is None:
        text = importlib.resources.files(__package__).joinpath("prices.toml").read_text("utf-8")
    else:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not a text"
            raise UserError(f"the prices {path} cannot be read ({reason}); name a TOML file") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the prices {path} are not TOML ({error}); see docs/plans.md for the form") from None
    return Prices(
        date=str(_field(table, "date", path)),
        currency=str(_field(table, "currency", path)),
        per_hour={key: _price(key, price, path) for key, price in _rows(table, path).items()},
    )


def _field(table: Mapping[str, Any], name: str, path: Path | None) -> Any:
    if name not in table:
        raise UserError(f"the prices {path} lack {name}; see docs/plans.md for the form")
    return table[name]


def _rows(table: Mapping[str, Any], path: Path | None) -> Mapping[str, Any]:
    rows = _field(table, "per_hour", path)
    if not isinstance(rows, dict):
        raise UserError(f"per_hour of the prices {path} is {rows!r}; it must be a table, [per_hour]")
    return rows


def _price(key: str, price: Any, path: Path | None) -> float:
    if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < float("inf"):
        raise UserError(f"the price of {key} in {path} is {price!r}; it must be a number of at least 0")
    return float(price)
