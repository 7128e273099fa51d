"""The report as one HTML file: nothing in it comes from elsewhere, no script is in it, and none could run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from string import Template

from veneer.evaluate.results import Evaluation, Score
from veneer.plan.text import format_bytes
from veneer.report.content import Advised, Painting, Planned, Report, Section, Strip, Twin
from veneer.report.markup import Markup, element, joined, text
from veneer.report.plots import band_name, bands_plots, intervals_plot, loss_plot, scores_plot
from veneer.report.words import (
    change,
    ending_in_words,
    figure,
    gap_in_words,
    interval,
    number,
    share,
    signed,
)

__all__ = ["page"]

_MARKS = {"good": "\N{CHECK MARK} ", "bad": "\N{MULTIPLICATION X} ", "unclear": "? ", "unmeasured": ""}
_DASH = "\N{EN DASH}"


def page(report: Report) -> str:
    """The whole file."""
    shown = [(anchor, title, body) for anchor, title, emit in _SECTIONS if (body := emit(report))]
    parts = [_section(*each) for each in shown]
    style = (files(__package__) / "page.css").read_text("utf-8")
    template = Template((files(__package__) / "page.html").read_text("utf-8"))
    return template.substitute(
        title=text(f"{report.title}: Veneer report"),
        style=style,
        name=text(report.title),
        verdict=_verdict(report),
        tiles=_tiles(report),
        contents=_contents([(anchor, title) for anchor, title, _ in shown]),
        sections="\n".join(parts),
    )


def _section(anchor: str, title: str, body: Markup) -> Markup:
    heading = element("h2", title, id=f"{anchor}-title")
    return element("section", heading, body, id=anchor, aria_labelledby=f"{anchor}-title")


def _contents(titles: Sequence[tuple[str, str]]) -> Markup:
    links = (element("li", element("a", title, href=f"#{anchor}")) for anchor, title in titles)
    return element("nav", element("ul", *links), aria_label="Contents")


def _verdict(report: Report) -> Markup:
    mark = element("span", _MARKS[report.tone], aria_hidden="true")
    parts = [element("p", mark, report.verdict, class_="said")]
    if report.course is not None:
        parts.append(element("p", ending_in_words(report.course.ending), class_="ending"))
    return element("div", *parts, _missing(report, "verdict"), class_=f"verdict {report.tone}")


def _missing(report: Report, *sections: Section) -> Markup:
    lacking = [each for section in sections for each in report.lacks(section)]
    return joined(element("p", f"{each.what}: ", element("code", each.how), class_="missing") for each in lacking)


def _tiles(report: Report) -> Markup:
    tiles = [*_score_tiles(report.evaluation), *_run_tiles(report)]
    parts = (
        element("div", element("dt", name), element("dd", big, class_="big"), element("dd", small, class_="small"))
        for name, big, small in tiles
    )
    return element("dl", *parts, class_="tiles") if tiles else Markup()


def _score_tiles(evaluation: Evaluation | None) -> list[tuple[str, Markup, str]]:
    if evaluation is None:
        return []
    tiles: list[tuple[str, Markup, str]] = []
    if (score := evaluation.held_out) is not None:
        said = joined([figure(score.base, number(score.base)), " to ", figure(score.adapter, number(score.adapter))])
        tiles.append(("Held-out loss", text(share(change(score))), joined(["from ", said])))
    if (gap := evaluation.gap) is not None:
        tiles.append(("Memorisation gap", figure(gap.mean, signed(gap.mean)), joined([interval(gap.low, gap.high)])))
    if (drift := evaluation.drift) is not None:
        tiles.append(("Drift on other things", text(share(change(drift))), joined([interval(drift.low, drift.high)])))
    if (copying := evaluation.copying) is not None:
        small = f"of {len(copying.samples)} painted; {number(copying.expected, '.1f')} expected by luck"
        tiles.append(("Called a copy", figure(copying.flagged, str(copying.flagged)), small))
    return tiles


def _run_tiles(report: Report) -> list[tuple[str, Markup, str]]:
    tiles: list[tuple[str, Markup, str]] = []
    if report.course is not None and report.course.scores:
        best, last = report.course.scores[-1].best_step, report.course.scores[-1].step
        small = "the last one scored" if best == last else "its adapter is best.safetensors"
        tiles.append(("Best step so far", figure(best, f"{best:,}"), small))
    if report.findings is not None:
        ill = sum(each.level == "problem" for each in report.findings)
        tiles.append(("Doctor's findings", figure(ill, str(ill)), f"and {len(report.findings) - ill} notes"))
    return tiles


def _help(report: Report) -> Markup:
    """The scores at the end, plotted and as a table."""
    lacking = _missing(report, "help")
    evaluation = report.evaluation
    plot = None if evaluation is None else intervals_plot(evaluation)
    if evaluation is None or plot is None:
        return lacking
    said = element(
        "span", "Dots: means; bars: 95 % intervals over pictures. Left of the line is better.", class_="soft"
    )
    drawn = element("figure", element("figcaption", "Change of the denoising loss ", said), plot)
    return joined(
        [
            element("div", drawn, _meaning(evaluation), class_="pair"),
            _scores_table(evaluation),
            _judges(report),
            lacking,
        ]
    )


def _meaning(evaluation: Evaluation) -> Markup:
    """What the plot says, in words."""
    parts: list[Markup] = []
    if evaluation.gap is not None:
        numbers = joined(
            [
                figure(evaluation.gap.mean, signed(evaluation.gap.mean)),
                " (",
                interval(evaluation.gap.low, evaluation.gap.high),
                ")",
            ]
        )
        parts += [element("h3", "Memorisation"), element("p", "Gap ", numbers, ". ", gap_in_words(evaluation.gap))]
    if evaluation.drift is not None:
        by = share(change(evaluation.drift))
        said = f"On {evaluation.drift_source}, which the adapter should leave alone, the loss changes by {by}."
        parts += [element("h3", "Drift"), element("p", said)]
    if evaluation.bands:
        said = "Time 0 is a clean picture and 1 is noise: layout and colour are decided near noise, texture near 0."
        parts += [element("h3", "Bands"), element("p", said)]
    parts += [element("p", note, class_="soft") for note in evaluation.notes]
    return element("div", *parts)


def _scores_table(evaluation: Evaluation) -> Markup:
    rows = [(name, score) for name, score in _named_scores(evaluation) if score is not None]
    head = ("", "base", "adapter", "difference", "95 % interval", "of the base's", "pictures", "verdict")
    body = [_score_row(name, score, name != "other things (drift)") for name, score in rows]
    return _table("Denoising loss, uniform over time", head, body)


def _named_scores(evaluation: Evaluation) -> list[tuple[str, Score | None]]:
    bands = [(band_name(each), each.score) for each in evaluation.bands] if len(evaluation.bands) > 1 else []
    kinds = [("training pictures", evaluation.training), ("other things (drift)", evaluation.drift)]
    return [("held-out pictures", evaluation.held_out), *bands, *kinds]


def _score_row(name: str, score: Score, judged: bool = True) -> list[str]:
    return [
        name,
        figure(score.base, number(score.base)),
        figure(score.adapter, number(score.adapter)),
        figure(score.mean, signed(score.mean)),
        interval(score.low, score.high),
        share(change(score)),
        figure(score.pictures, f"{score.pictures:,}"),
        score.verdict if judged else _DASH,
    ]


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table whose first column names its rows; it scrolls by itself where it is wider than the page."""
    top = element("thead", element("tr", *(element("th", name, scope="col") for name in head)))
    body = element("tbody", *(_row(row) for row in rows))
    whole = element("table", element("caption", caption), top, body)
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _row(row: Sequence[str]) -> Markup:
    return element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))


def _judges(report: Report) -> Markup:
    scores = report.evaluation.scores if report.evaluation else ()
    if not scores:
        return Markup()
    head = ("model", "base", "adapter", "difference", "95 % interval", "better is", "pictures")
    rows = [
        [
            each.name,
            figure(each.base, number(each.base)),
            figure(each.adapter, number(each.adapter)),
            figure(each.mean, signed(each.mean)),
            interval(each.low, each.high),
            "higher" if each.higher_is_better else "lower",
            figure(each.pictures, f"{each.pictures:,}"),
        ]
        for each in scores
    ]
    return _table("Painted pictures, judged by models", head, rows)


def _learning(report: Report) -> Markup:
    """The curves over the steps."""
    course = report.course
    if course is None:
        return _missing(report, "course", "scores")
    plots = []
    if course.curve is not None and any(point.loss is not None for point in course.curve.points):
        raw = "each step" if course.curve.width == 1 else f"lowest to highest of {course.curve.width:,} steps"
        keys = joined([_key("raw"), raw, " \N{MIDDLE DOT} ", _key("first"), "smoothed, about 20 steps"])
        plots.append(_figure("Training loss", keys, loss_plot(course.curve)))
    if course.scores:
        keys = joined([_key("first"), "held-out pictures \N{MIDDLE DOT} ", _key("second"), "training pictures"])
        plots.append(_figure("Loss less the base's, with 95 % intervals", keys, scores_plot(course.scores)))
    parts = [element("div", *plots, class_="pair"), _bands_over_steps(report), _scores_details(report)]
    return joined([*parts, _missing(report, "course", "scores"), _warnings(report)])


def _key(kind: str) -> Markup:
    return element("span", class_=f"key {kind}", aria_hidden="true")


def _figure(title: str, keys: str, plot: Markup) -> Markup:
    return element("figure", element("figcaption", f"{title} ", element("span", keys, class_="soft")), plot)


def _bands_over_steps(report: Report) -> Markup:
    scores = report.course.scores if report.course else ()
    if not scores or len(scores[-1].bands) < 2:
        return Markup()
    named = zip(scores[-1].bands, bands_plots(scores), strict=True)
    plots = (element("figure", element("figcaption", band_name(band).capitalize()), plot) for band, plot in named)
    return joined(
        [element("h3", "By parts of time, on held-out pictures"), element("div", *plots, class_="small-plots")]
    )


def _scores_details(report: Report) -> Markup:
    scores = report.course.scores if report.course else ()
    if not scores:
        return Markup()
    head = (
        "after step",
        "held-out loss",
        "difference",
        "95 % interval",
        "training pictures",
        "memorisation gap",
        "95 % interval",
    )
    rows = [
        [
            figure(each.step, f"{each.step:,}"),
            figure(each.held_out.adapter, number(each.held_out.adapter)),
            figure(each.held_out.mean, signed(each.held_out.mean)),
            interval(each.held_out.low, each.held_out.high),
            figure(each.training.mean, signed(each.training.mean)),
            figure(each.gap.mean, signed(each.gap.mean)),
            interval(each.gap.low, each.gap.high),
        ]
        for each in scores
    ]
    return element("details", element("summary", "These scores as a table"), _table("Scores on the way", head, rows))


def _warnings(report: Report) -> Markup:
    course = report.course
    if course is None or not course.warnings:
        return Markup()
    more = [element("li", f"and {course.more_warnings:,} more, in run.jsonl")] if course.more_warnings else []
    items = [element("li", warning) for warning in course.warnings]
    return joined([element("h3", "Warnings"), element("ul", *items, *more)])


def _samples(report: Report) -> Markup:
    if report.samples is None:
        return _missing(report, "samples")
    words = "The same prompts from the same seeds, by the base and after more and more steps."
    return joined([element("p", words, class_="soft"), _strip("Samples by step", report.samples)])


def _strip(caption: str, strip: Strip) -> Markup:
    """Pictures by row and column; a picture that could not be taken apart, whole."""
    if not strip.rows:
        body: Markup = joined(_picture(each) for row in strip.pictures for each in row)
        return element("div", body, class_="scroll whole", tabindex=0, role="region", aria_label=caption)
    top = element(
        "tr",
        element("th", element("span", "prompt", class_="soft"), scope="col"),
        *(element("th", each, scope="col") for each in strip.columns),
    )
    rows = (
        element("tr", element("th", name, scope="row"), *(element("td", _picture(each)) for each in row))
        for name, row in zip(strip.rows, strip.pictures, strict=True)
    )
    whole = element("table", element("thead", top), element("tbody", *rows), class_="strip")
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _picture(painting: Painting, class_: str | None = None) -> Markup:
    return element("img", src=painting.data, alt=painting.about, loading="lazy", class_=class_)


def _before_after(report: Report) -> Markup:
    if report.sheet is None:
        return _missing(report, "sheet")
    if not report.sheet.rows:
        return _strip("Before and after", report.sheet)
    cards = []
    for name, row in zip(report.sheet.rows, report.sheet.pictures, strict=True):
        shown = zip(report.sheet.columns, row, strict=True)
        trio = (element("figure", _picture(each), element("figcaption", column)) for column, each in shown)
        cards.append(element("li", element("h3", name), element("div", *trio, class_="trio")))
    words = "Held-out prompts: each column of pictures is painted from the same seed."
    return joined([element("p", words, class_="soft"), element("ul", *cards, class_="cards")])


def _copying(report: Report) -> Markup:
    copying = report.evaluation.copying if report.evaluation else None
    if copying is None:
        return _missing(report, "copying")
    said = (
        figure(copying.flagged, str(copying.flagged)),
        f" of {len(copying.samples)} painted pictures are nearer to a training picture than any of {len(copying.real)} "
        f"real ones ({copying.yardstick}); by luck it would be ",
        figure(copying.expected, number(copying.expected, ".1f")),
        ". The yardstick is ",
        figure(copying.threshold, f"{number(copying.threshold, '.1f')}\N{DEGREE SIGN}"),
        " between latents: below it a painting is called a copy.",
    )
    cards = element("ul", *(_twin(each) for each in report.twins), class_="cards")
    return joined([element("p", *said), cards, _missing(report, "copying")])


def _twin(twin: Twin) -> Markup:
    pictures = []
    if twin.painted is not None:
        pictures.append(element("figure", _picture(twin.painted), element("figcaption", "painted")))
    if twin.nearest is not None:
        turned = "mirrored" if twin.mirrored else None
        label = "nearest training picture" + (", mirrored" if twin.mirrored else "")
        pictures.append(element("figure", _picture(twin.nearest, turned), element("figcaption", label)))
    badge = [" ", element("span", "a copy?", class_="badge copy")] if twin.flagged else []
    angle = figure(twin.angle, f"{number(twin.angle, '.1f')}\N{DEGREE SIGN}")
    about = element("p", angle, " from ", element("code", twin.name), *badge)
    return element("li", element("h3", twin.caption), element("div", *pictures, class_="trio"), about)


def _plan(report: Report) -> Markup:
    if not report.plan:
        return _missing(report, "plan")
    rows = [_plan_row(each) for each in report.plan]
    return joined(
        [_table("The plan and the run", ("", "planned", "measured", "off by"), rows), _missing(report, "plan")]
    )


def _plan_row(each: Planned) -> list[str]:
    off = _DASH
    if each.planned and each.measured is not None:
        off = share(each.measured / each.planned - 1, "+.1%") if each.measured != each.planned else "exact"
    return [each.what, *(_amount(value, each.unit) for value in (each.planned, each.measured)), off]


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return _DASH
    if unit == "bytes":
        return figure(value, format_bytes(round(value)).replace(" ", "\N{NO-BREAK SPACE}"))
    return figure(value, f"{number(value, '.3f')}\N{NO-BREAK SPACE}s" if unit == "seconds" else f"{value:,.0f}")


def _doctor(report: Report) -> Markup:
    if report.findings is None:
        return _missing(report, "doctor")
    if not any(each.level == "problem" for each in report.findings):
        well = element("p", "No problem was found in this run.")
    else:
        well = Markup()
    return joined([well, *(_finding(each) for each in report.findings), _missing(report, "doctor")])


def _finding(finding: Advised) -> Markup:
    level = finding.level
    doubt = "" if finding.sure else " (not sure)"
    name = finding.name.replace("_", " ")
    head = element("h3", element("span", level, class_=f"badge {finding.level}"), f" {name}{doubt}")
    tries = [
        element("li", "try ", element("code", change_.name), f" {_DASH} {change_.value}") for change_ in finding.changes
    ]
    tries += [element("li", "try: ", each) for each in finding.advice]
    seen = [element("li", f"seen: {each}") for each in finding.evidence]
    return element(
        "article", head, element("p", finding.what), element("ul", *seen, *tries), class_=f"finding {finding.level}"
    )


def _config(report: Report) -> Markup:
    if report.config is None:
        return Markup()
    summary = element("summary", "Every key, as it was resolved (config.yaml)")
    return element("details", summary, element("pre", element("code", report.config), tabindex=0))


def _facts(report: Report) -> Markup:
    pairs = (
        part for each in report.facts for part in (element("dt", each.name), element("dd", element("code", each.value)))
    )
    return element("dl", *pairs, class_="facts") if report.facts else Markup()


_SECTIONS: tuple[tuple[str, str, Callable[[Report], Markup]], ...] = (
    ("help", "Does it help?", _help),
    ("learning", "How it learned", _learning),
    ("samples", "Samples over the steps", _samples),
    ("before-after", "Before and after", _before_after),
    ("copying", "Does it copy?", _copying),
    ("doctor", "What the doctor says", _doctor),
    ("plan", "Plan and measured", _plan),
    ("config", "Configuration", _config),
    ("provenance", "Provenance", _facts),
)
