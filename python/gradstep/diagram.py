"""A network as a picture: SVG and HTML without any package."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from gradstep.layers import Layer, LayerSummary, summaries

MOST_UNITS = 10
"""Widest layer of which every unit is drawn; of wider ones the first and the last few."""

ENDS = 3
"""Units drawn at each end of a wider layer."""

RADIUS, UNIT_PITCH, LINE_HEIGHT = 8, 22, 16
MARGIN, ARC_HEIGHT = 14, 34
"""All in pixels."""

CHARACTER = 7.0
"""Pixels of a character of the labels, at most but for a few wide letters."""

LEAST_PITCH = 96
"""Pixels between two layers."""

GREY, BLUE, ORANGE = "#8a8a8a", "#4a8fd9", "#df8a2e"
"""Of inputs, hidden layers and outputs: seen on white and on black."""

MOST_CLASSES = 10
"""Names of classes that the HTML lists."""


class Svg(str):
    """The text of an SVG picture; notebooks show the picture.

    ``Path("network.svg").write_text(svg)`` keeps it.
    """

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"<Svg of {len(self)} characters>"


class _Column(NamedTuple):
    units: int | None
    color: str
    labels: tuple[str, ...]
    source: int = -1
    """Number of the column whose outputs it takes."""
    summands: tuple[int, ...] = ()
    """Numbers of the columns that are added to its outputs."""
    embedded: int | None = None
    """Which of its inputs an embedding replaces."""

    @property
    def slots(self) -> list[int]:
        """Which of the places one below the other hold a unit; others hold the dots."""
        if self.units is not None and self.units <= MOST_UNITS:
            return list(range(self.units))
        return [*range(ENDS), *range(ENDS + 1, 2 * ENDS + 1)]

    @property
    def heights(self) -> list[float]:
        """Where the units are, from the middle."""
        slots = self.slots
        return [UNIT_PITCH * (slot - slots[-1] / 2) for slot in slots]

    @property
    def is_cut(self) -> bool:
        return self.units is None or self.units > MOST_UNITS


def network_svg(layers: Sequence[Layer], n_in: int | None, *, card: bool = True) -> Svg:
    """Draw layers from left to right, with their sizes, activations and numbers of parameters.

    Parameters
    ----------
    layers
        Those of the network.
    n_in
        Columns of X; None while they are unknown.
    card
        Draw dark on a light card, for files and wherever the background is unknown; otherwise in the text
        color of the page that holds the picture.

    Returns
    -------
    Svg
        A whole picture.
    """
    columns = _columns(layers, n_in)
    longest = max(len(label) for column in columns for label in column.labels)
    pitch = max(LEAST_PITCH, CHARACTER * longest + MARGIN)
    arcs = [(s, i) for i, column in enumerate(columns) for s in column.summands]
    arcs += [(column.source, i) for i, column in enumerate(columns) if 0 <= column.source < i - 1]
    highest = max(column.heights[-1] for column in columns)
    top = MARGIN + (ARC_HEIGHT if arcs else 0)
    middle = top + RADIUS + highest
    below = middle + RADIUS + highest + MARGIN + LINE_HEIGHT
    width = pitch * len(columns)
    height = below + LINE_HEIGHT * (max(len(column.labels) for column in columns) - 1) + MARGIN
    places = [pitch * (index + 0.5) for index in range(len(columns))]
    described = escape("; ".join(", ".join(column.labels) for column in columns))
    ink = ' color="#222222"' if card else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" font-family="sans-serif" font-size="12"{ink}>',
        f"<title>{described}</title>",
    ]
    if card:
        parts.append(f'<rect width="{width:g}" height="{height:g}" rx="6" fill="#fbfbfb"/>')
    for index in range(1, len(columns)):
        before, after = columns[index - 1 : index + 1]
        if index - 1 == after.source:
            parts.append(_connections(before, after, places[index - 1], places[index], middle))
    parts.extend(_arc(places[start], places[end], top) for start, end in arcs)
    for column, x in zip(columns, places, strict=True):
        parts.extend(_units(column, x, middle))
        parts.extend(_labels(column, x, below))
    return Svg("\n".join([*parts, "</svg>"]))


def _columns(layers: Sequence[Layer], n_in: int | None) -> list[_Column]:
    """The input and the layers that have units of their own; the others are labels of the column before."""
    inputs = "? columns" if n_in is None else _counted(n_in, "column")
    columns = [_Column(n_in, GREY, ("input", inputs))]
    at = [0]  # the column where each layer's outputs are, the input's in front
    for index, row in enumerate(summaries(layers, n_in)):
        source = at[index + 1 - row.plan.back]
        if row.plan.kind in ("dense", "embedding"):
            units = "? units" if row.units is None else _counted(row.units, "unit")
            embedded = row.plan.column if row.plan.kind == "embedding" and row.units else None
            labels = (row.name, units, *_details(row))
            columns.append(_Column(row.units, BLUE, labels, source, embedded=embedded))
        else:
            last, summands = columns[-1], columns[-1].summands
            if row.plan.kind == "sum":
                both = {source, at[index + 1 - row.plan.other_back]} - {len(columns) - 1}
                summands = tuple(sorted({*summands, *both}))
            columns[-1] = last._replace(labels=(*last.labels, row.name, *_details(row)), summands=summands)
        at.append(len(columns) - 1)
    return [*columns[:-1], columns[-1]._replace(color=ORANGE)]


def _details(row: LayerSummary) -> tuple[str, ...]:
    lines = list(row.notes)
    if row.plan.kind == "dense" or row.plan.activation != "identity":
        lines.insert(0, row.plan.activation)
    if row.parameters != 0:
        lines.append("? parameters" if row.parameters is None else _counted(row.parameters, "parameter"))
    return tuple(lines)


def _number(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _connections(before: _Column, after: _Column, left: float, right: float, middle: float) -> str:
    pairs = [(i, k) for i in range(len(before.heights)) for k in range(len(after.heights))]
    if after.embedded is not None and not before.is_cut and not after.is_cut:
        pairs = _embedded_pairs(len(before.heights), len(after.heights), after.embedded)
    lines = [
        f"M{left + RADIUS:g} {middle + before.heights[i]:g}L{right - RADIUS:g} {middle + after.heights[k]:g}"
        for i, k in pairs
    ]
    return f'<path d="{"".join(lines)}" stroke="currentColor" stroke-opacity="0.22" fill="none"/>'


def _embedded_pairs(inputs: int, units: int, column: int) -> list[tuple[int, int]]:
    """The columns that pass by, and the one that its vector replaces."""
    others = [i for i in range(inputs) if i != column]
    return [*((i, k) for k, i in enumerate(others)), *((column, k) for k in range(len(others), units))]


def _arc(left: float, right: float, top: float) -> str:
    """From above one column to above another: past those between, or to be added."""
    start, end, high = left + RADIUS, right - RADIUS, top - ARC_HEIGHT
    return (
        f'<path d="M{start:g} {top:g}C{start + RADIUS:g} {high:g} {end - RADIUS:g} {high:g} {end:g} {top:g}" '
        'stroke="currentColor" stroke-opacity="0.5" stroke-width="1.5" fill="none"/>'
    )


def _units(column: _Column, x: float, middle: float) -> list[str]:
    dashes = ' stroke-dasharray="3 2"' if column.units is None else ""
    fill = column.color if column.units is not None else "none"
    drawn = [
        f'<circle cx="{x:g}" cy="{middle + height:g}" r="{RADIUS}" fill="{fill}" '
        f'stroke="{column.color}"{dashes}/>'
        for height in column.heights
    ]
    if column.is_cut:
        drawn += [
            f'<circle cx="{x:g}" cy="{middle + 6 * step:g}" r="1.7" fill="currentColor"/>'
            for step in (-1, 0, 1)
        ]
    return drawn


def _labels(column: _Column, x: float, below: float) -> list[str]:
    bold = ' font-weight="bold"'
    return [
        f'<text x="{x:g}" y="{below + LINE_HEIGHT * line:g}" text-anchor="middle" fill="currentColor"'
        f"{bold if line == 0 else ''}>{escape(label)}</text>"
        for line, label in enumerate(column.labels)
    ]


def network_html(
    headline: str, layers: Sequence[Layer], n_in: int | None, classes: Sequence[str] | None = None
) -> str:
    """The table of layers over the diagram, in the colors of the page.

    Parameters
    ----------
    headline
        One line about the network.
    layers, n_in
        As for `network_svg`.
    classes
        Names of the labels, if they have names.

    Returns
    -------
    str
        HTML that needs nothing else.
    """
    rows = summaries(layers, n_in)
    body = [
        (
            row.name,
            row.described,
            f"{_number(row.n_in)} → {_number(row.units)}",
            _number(row.parameters),
        )
        for row in rows
    ]
    total = _number(None if n_in is None else sum(row.parameters or 0 for row in rows))
    lines = [
        "<div>",
        f"<div>{escape(headline)}</div>",
        *([] if classes is None else [f"<div>{escape(_classes(classes))}</div>"]),
        '<table style="border-collapse: collapse; margin: 0.5em 0">',
        _row("th", ("layer", "activation", "shape", "parameters")),
        *(_row("td", cells) for cells in [*body, ("total", "", "", total)]),
        "</table>",
        f'<div style="overflow-x: auto">{network_svg(layers, n_in, card=False)}</div>',
        "</div>",
    ]
    return "\n".join(lines)


def _classes(classes: Sequence[str]) -> str:
    more = f", and {len(classes) - MOST_CLASSES} more" if len(classes) > MOST_CLASSES else ""
    return f"classes {', '.join(classes[:MOST_CLASSES])}{more}"


def _row(tag: str, cells: Sequence[str]) -> str:
    style = "padding: 0.2em 0.8em; border-bottom: 1px solid rgba(128, 128, 128, 0.35); text-align: "
    sides = ["left", "left", "right", "right"]
    inner = (
        f'<{tag} style="{style}{side}">{escape(cell)}</{tag}>'
        for cell, side in zip(cells, sides, strict=True)
    )
    return f"<tr>{''.join(inner)}</tr>"
