"""Look of the report: one style sheet, one palette, and the small pieces of HTML that every part uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from vitpipe.evaluate.statistics import Estimate

# Okabe & Ito's palette: told apart by all, also in print.
BLUE: Final = "#0072B2"
ORANGE: Final = "#E69F00"
GREEN: Final = "#009E73"
RED: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
SKY: Final = "#56B4E9"
GREY: Final = "#6B7280"
INK: Final = "#1F2937"
FAINT: Final = "#E5E7EB"
CYCLE: Final = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, "#8B6F00", GREY)

BAR_WIDTH: Final = 260
_BAR_HEIGHT: Final = 18
_PAD: Final = 8

STYLE: Final = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0;background:#f3f4f6;color:#1f2937;font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,
"DejaVu Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 20px 60px}
header.top{background:#fff;border-radius:12px;padding:26px 30px;border-top:5px solid #0072B2;box-shadow:0 1px 3px #0002}
header.top.warn{border-top-color:#E69F00}header.top.bad{border-top-color:#D55E00}
h1{margin:0 0 4px;font-size:27px;letter-spacing:-.01em}
h2{margin:0 0 4px;font-size:19px;letter-spacing:-.01em}
h3{margin:22px 0 6px;font-size:15px}
section{background:#fff;border-radius:12px;padding:22px 30px 24px;margin-top:18px;box-shadow:0 1px 3px #0002}
p{margin:6px 0 10px;max-width:84ch}
.lead{color:#6b7280;font-size:14px;margin:0 0 14px;max-width:92ch}
.small{font-size:13px;color:#6b7280}
.verdict{display:inline-block;margin:10px 0 4px;padding:8px 14px;border-radius:8px;font-weight:600;background:#e6f4ef;
color:#00553d;max-width:100%}
.warn .verdict{background:#fdf3dc;color:#6b4a00}.bad .verdict{background:#fbe7dc;color:#7a2e00}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin-top:16px}
.card{border:1px solid #e5e7eb;border-radius:10px;padding:12px 14px}
.card .name{font-size:12.5px;color:#6b7280}.card .value{font-size:25px;font-weight:650;line-height:1.25}
.card .range{font-size:13px;color:#374151}.card .n{font-size:12px;color:#6b7280}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
th{font-weight:600;text-align:left;font-size:12.5px;color:#4b5563;border-bottom:2px solid #e5e7eb;
padding:5px 10px 5px 0;vertical-align:bottom}
td{border-bottom:1px solid #f0f1f3;padding:5px 10px 5px 0;vertical-align:middle}
td.r,th.r{text-align:right}
tr.head td{font-weight:600;padding-top:14px;border-bottom:1px solid #e5e7eb}
tr.weak td{color:#9ca3af}
td svg{display:block}
.dim{color:#6b7280}.nowrap{white-space:nowrap}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(340px,100%),1fr));gap:18px;align-items:start}
figure{margin:0}figure img{width:100%;max-width:940px;height:auto;display:block}.figures img{max-width:520px}
figcaption{font-size:13px;color:#6b7280;margin-top:4px}
table.forest{table-layout:fixed;min-width:760px}table.confusion{width:auto}
table.confusion td{border:2px solid #fff;text-align:center;min-width:58px;padding:7px 8px;line-height:1.2}
table.confusion th{border:0;padding:4px 10px;text-align:right;
vertical-align:middle}table.confusion thead th{text-align:center}
table.confusion.long thead th{vertical-align:bottom;text-align:left;padding:4px 0}
table.confusion.long thead span{writing-mode:vertical-rl;transform:rotate(180deg);white-space:nowrap;padding:2px 18px}
table.confusion small{display:block;font-size:11px;opacity:.85}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(112px,1fr));gap:14px}
.tile{font-size:12px;line-height:1.35;overflow-wrap:anywhere}
.tile .pixels{aspect-ratio:1;border-radius:6px;overflow:hidden;border:3px solid #D55E00;
background:repeating-linear-gradient(45deg,#e5e7eb 0 5px,#fff 5px 10px)}
.tile.hit .pixels{border-color:#009E73}
.tile img{width:100%;height:100%;display:block;object-fit:contain;image-rendering:auto}
.tile b{font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;font-size:13px;color:#374151;margin:0 0 10px}
.legend i{display:inline-block;width:14px;height:14px;border-radius:3px;vertical-align:-2px;margin-right:6px}
.legend i.ramp{width:120px;margin:0 4px}
.legend i.none,.panels .pixels{background:repeating-linear-gradient(45deg,#e5e7eb 0 3px,#fff 3px 6px)}
.looks{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(460px,100%),1fr));gap:12px 28px}
.look p{margin:4px 0 4px;overflow-wrap:anywhere}
.panels{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:8px}
.panels .pixels{aspect-ratio:1;border-radius:5px;overflow:hidden}
.panels img{width:100%;height:100%;object-fit:contain;image-rendering:pixelated}
.panels figcaption{font-size:12px;margin-top:2px}
.flow{display:flex;flex-wrap:wrap;gap:10px;align-items:stretch;margin:6px 0 16px}
.flow div{border:1px solid #e5e7eb;border-radius:8px;padding:8px 14px;background:#fafafa}
.flow div b{display:block;font-size:19px}
.flow .arrow{border:0;background:none;padding:8px 0;align-self:center;color:#9ca3af}
.flow .out{border-color:#f0c9b0;background:#fdf6f1}
ul.notes{margin:6px 0;padding-left:20px}ul.notes li{margin:3px 0;max-width:95ch}
pre{background:#f9fafb;border:1px solid #e5e7eb;border-radius:8px;padding:12px;overflow-x:auto;
font-size:12px;line-height:1.45}
code{font-size:12.5px;overflow-wrap:anywhere}
details summary{cursor:pointer;color:#374151;margin:8px 0}
footer{margin-top:22px;font-size:12.5px;color:#6b7280}
@media print{body{background:#fff}section,header.top{box-shadow:none;border:1px solid #e5e7eb;break-inside:avoid}}
@media(max-width:640px){.cards{grid-template-columns:1fr 1fr}section,header.top{padding:16px}main{padding:10px}
section>figure{overflow-x:auto}section>figure>img{min-width:600px}}
"""

WORDS: Final = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "brier": "Brier score",
    "nll": "Negative log-likelihood",
    "ece": "Calibration error (ECE)",
    "aurc": "AURC",
    "excess_aurc": "Excess AURC",
    "augrc": "AUGRC",
    "mean_iou": "Mean IoU",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "MAE",
    "bias": "Bias",
    "pearson_r": "Correlation",
}


def words(metric: str) -> str:
    """Name a metric for people."""
    return WORDS.get(metric, metric.replace("_", " "))


def section(title: str, lead: str, *parts: str) -> str:
    """Put parts under a heading, with a sentence on how to read them; empty where there is nothing to show."""
    body = "".join(parts)
    return f"<section><h2>{escape(title)}</h2><p class='lead'>{escape(lead)}</p>{body}</section>" if body else ""


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """Make a table; a heading that starts with ``>`` stands to the right. Rows are HTML already."""
    cells = "".join(
        f"<th class='r'>{escape(name[1:])}</th>" if name.startswith(">") else f"<th>{escape(name)}</th>"
        for name in head
    )
    return f"<div class='scroll'><table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def bullets(notes: Iterable[str]) -> str:
    """List sentences."""
    return f"<ul class='notes'>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"


def number(value: float | None, digits: int = 3) -> str:
    """Write a number; a dash where it is not defined."""
    return "&ndash;" if value is None else f"{value:.{digits}f}"


def span(estimate: Estimate, digits: int = 3) -> str:
    """Write the interval of an estimate."""
    if estimate.estimate is None:
        return "not defined"
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"


def span_of(estimates: Sequence[Estimate], *, around: float | None = None) -> tuple[float, float]:
    """Give a scale that holds all estimates and, where given, a reference value."""
    ends = [value for each in estimates for value in (each.estimate, each.low, each.high) if value is not None]
    ends += [around] if around is not None else []
    if not ends:
        return 0.0, 1.0
    low, high = min(ends), max(ends)
    room = max(0.02, 0.06 * (high - low))
    return low - room, high + room


def _place(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    return _PAD + (value - low) / (high - low) * (BAR_WIDTH - 2 * _PAD)


def bar(estimate: Estimate, scale: tuple[float, float], *, colour: str = BLUE, reference: float | None = None) -> str:
    """Draw an estimate and its interval on a scale; a thin line marks the reference."""
    middle = _BAR_HEIGHT / 2
    parts = [
        f"<line x1='{_PAD}' x2='{BAR_WIDTH - _PAD}' y1='{middle}' y2='{middle}' stroke='{FAINT}' stroke-width='1'/>"
    ]
    if reference is not None:
        place = _place(reference, scale)
        parts.append(
            f"<line x1='{place:.1f}' x2='{place:.1f}' y1='0' y2='{_BAR_HEIGHT}' stroke='{GREY}' "
            "stroke-dasharray='2 2'/>"
        )
    if estimate.low is not None and estimate.high is not None:
        low, high = _place(estimate.low, scale), _place(estimate.high, scale)
        parts.append(
            f"<line x1='{low:.1f}' x2='{high:.1f}' y1='{middle}' y2='{middle}' stroke='{colour}' stroke-width='4' "
            "stroke-linecap='round' opacity='.45'/>"
        )
    if estimate.estimate is not None:
        parts.append(f"<circle cx='{_place(estimate.estimate, scale):.1f}' cy='{middle}' r='4.5' fill='{colour}'/>")
    label = f"{number(estimate.estimate)}, interval {span(estimate)}"
    return (
        f"<svg width='{BAR_WIDTH}' height='{_BAR_HEIGHT}' viewBox='0 0 {BAR_WIDTH} {_BAR_HEIGHT}' role='img' "
        f"aria-label='{escape(label)}'>{''.join(parts)}</svg>"
    )


def axis(scale: tuple[float, float]) -> str:
    """Draw the scale of a column of bars."""
    low, high = scale
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 1e9) if (high - low) / step <= 6)
    first = int(-(-low // step))
    ticks = []
    for index in range(first, int(high // step) + 1):
        value, place = index * step, _place(index * step, scale)
        ticks.append(
            f"<line x1='{place:.1f}' x2='{place:.1f}' y1='14' y2='18' stroke='{GREY}'/>"
            f"<text x='{place:.1f}' y='11' font-size='10.5' text-anchor='middle' fill='{GREY}'>{value:g}</text>"
        )
    return (
        f"<svg width='{BAR_WIDTH}' height='18' viewBox='0 0 {BAR_WIDTH} 18' aria-hidden='true'>{''.join(ticks)}</svg>"
    )


def forest(rows: Sequence[tuple[str, Estimate, str]], heading: str, reference: float | None = None) -> str:
    """Draw labelled intervals on one scale.

    Args:
        rows: label, estimate, colour; an empty colour makes a heading of the label.
        heading: of the column of labels.
        reference: a value marked in every row.
    """
    scale = span_of([estimate for _, estimate, colour in rows if colour], around=reference)
    lines = [f"<tr><td></td><td>{axis(scale)}</td><td colspan='4'></td></tr>"]
    for label, estimate, colour in rows:
        if not colour:
            lines.append(f"<tr class='head'><td colspan='6'>{escape(label)}</td></tr>")
            continue
        weak = " class='weak'" if estimate.low is None else ""
        lines.append(
            f"<tr{weak}><td>{escape(label)}</td><td>{bar(estimate, scale, colour=colour, reference=reference)}</td>"
            f"<td class='r'><b>{number(estimate.estimate)}</b></td><td class='nowrap'>{span(estimate)}</td>"
            f"<td class='r'>{estimate.n}</td><td class='r'>{estimate.n_groups}</td></tr>"
        )
    widths = ("auto", f"{BAR_WIDTH + 24}px", "90px", "150px", "70px", "70px")
    columns = "".join(f"<col style='width:{width}'>" for width in widths)
    made = table((heading, "", ">estimate", "interval", ">n", ">groups"), lines)
    return made.replace("<table>", f"<table class='forest'><colgroup>{columns}</colgroup>", 1)
