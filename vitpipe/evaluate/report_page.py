"""The frame of a report: the parts that every task has, in one order, around those of its own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vitpipe import __version__
from vitpipe.evaluate.judged import Judged
from vitpipe.evaluate.regions import ground_of
from vitpipe.evaluate.report_cohort import cohort
from vitpipe.evaluate.report_ground import ground_section
from vitpipe.evaluate.report_parts import baselines, notes, recipe, subgroups, training
from vitpipe.evaluate.report_style import STYLE


def report_page(judged: Judged, top: Sequence[str], own: Sequence[str], tiles: str) -> str:
    """Put a report together.

    Args:
        judged: the numbers and where they are from.
        top: the verdict, and the numbers by level.
        own: what the task alone has: errors, classes, probabilities.
        tiles: tiles to look at.

    Returns:
        A whole HTML page: pictures are data URIs, no script, nothing is fetched.
    """
    parts = [
        *top,
        baselines(judged),
        *own,
        ground_section(ground_of(judged)),
        subgroups(judged),
        tiles,
        cohort(judged),
        training(judged),
        notes(judged),
        recipe(judged),
    ]
    remark = "For research, not for clinical use. Names of groups are keyed pseudonyms, cut to six characters."
    return html_page(f"{judged.config.name}: evaluation", parts, remark)


def html_page(title: str, parts: Sequence[str], remark: str = "") -> str:
    """Put parts into a page.

    Args:
        title: of the window.
        parts: HTML.
        remark: stands at the foot, after the version.
    """
    foot = f"vitpipe {escape(__version__)}{'. ' if remark else ''}{escape(remark)}"
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width,initial-scale=1'><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}<footer>{foot}</footer></main></body></html>\n"
    )
