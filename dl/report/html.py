"""Fills the templates of a report: a self-contained page, in which all text from a run is escaped."""

import base64
import functools
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any

from dl.report import plots

if TYPE_CHECKING:
    import jinja2


def fill(template: str, **values: Any) -> str:
    """Returns a page as HTML.

    Args:
      template: the name of the template file.
      values: the variables of the template, beside the style sheet and the size of plots.
    """
    from markupsafe import Markup

    style = resources.files("dl.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        _templates()
        .get_template(template)
        .render(
            size=plots,
            style=Markup(style),  # a file of this package is trusted; everything else is escaped
            style_hash=Markup(f"sha256-{digest}"),
            **values,
        )
    )


@functools.cache
def _templates() -> "jinja2.Environment":
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("dl.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
