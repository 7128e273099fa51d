"""The report as one HTML file: nothing in it comes from elsewhere, no script is in it, and none could run."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from veneer.printable import printable
from veneer.report.content import Report
from veneer.report.formatting import (
    NO_INTERVAL,
    amount,
    change,
    is_closed,
    number,
    share,
    signed,
)
from veneer.report.plots.intervals import intervals_plot
from veneer.report.plots.loss import has_losses, loss_plot
from veneer.report.plots.scores import band_plots, scores_plot
from veneer.report.scores import named_scores
from veneer.report.sentences import ending_sentence, gap_sentence

__all__ = ["render_page", "templates"]

_SECTIONS = (
    ("help", "Does it help?"),
    ("learning", "How it learned"),
    ("samples", "Samples over the steps"),
    ("before-after", "Before and after"),
    ("copying", "Does it copy?"),
    ("doctor", "What the doctor says"),
    ("plan", "Plan and measured"),
    ("config", "Configuration"),
    ("provenance", "Provenance"),
)
"""Anchor and title of each section; its template is named after its anchor."""


def render_page(report: Report) -> str:
    """Return a report as an HTML file; sections without content are left out."""
    return printable(templates().get_template("page.html").render(report=report, sections=_SECTIONS))


@lru_cache(maxsize=1)
def templates() -> Environment:
    """Return the page's templates, which escape every value that is not markup."""
    environment = Environment(
        loader=PackageLoader("veneer.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (amount, change, ending_sentence, gap_sentence, number, share, signed, _coordinate)
    environment.filters |= {function.__name__.lstrip("_"): function for function in filters}
    functions = (band_plots, has_losses, intervals_plot, is_closed, loss_plot, named_scores, scores_plot)
    environment.globals |= {function.__name__: function for function in functions} | {"NO_INTERVAL": NO_INTERVAL}
    return environment


def _coordinate(value: float, digits: int = 2) -> str:
    """Return a number of an SVG attribute in as few digits as it needs."""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")
