"""SVG as text: the escaping, a layered drawing of a graph, a timeline, a sparkline. Pure.

A leaf. Colours are classes, so that whoever embeds a drawing styles it; STYLE is for one that stands alone.

    nodes, edges -> placed(): layers by longest path, ordered by barycentre, cut into columns, columns into bands -> graph_svg()

Every text that comes from data goes through escaped(): nothing in it can end an element or an attribute, steer a
terminal, or turn the direction of the text around.
"""
from __future__ import annotations

import re
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, Optional, Sequence, Tuple
    Cells = Callable[[str], int]        # how many characters of usual width a text is wide: that of text_table

ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}
COLUMN_NODES = 24           # a layer of more nodes takes several columns
BAND_PX = 1030              # columns that would be wider go on below, like lines of text
MARGIN_PX = 20              # left of the first column: room for edges that come from the band above
ROUNDS = 4                  # of ordering the layers anew
CHARACTER_PX = 6.4          # of the 11.5 px font that labels are set in, on average
STYLE = """
svg{font:11.5px system-ui,sans-serif;background:#fff;color:#1c2330}
.node rect{fill:#f4f6f9;stroke:#8a94a6}.node.files rect{fill:#fff;stroke:#b9c1cf;stroke-dasharray:3 2}.node text{fill:#1c2330}
.node.files text{fill:#5a6474}.edge{fill:none;stroke:#9aa4b5;stroke-width:1.2}.edge.needs{stroke-dasharray:4 3}.tip{fill:#9aa4b5}
@media(prefers-color-scheme:dark){svg{background:#12161d;color:#dde3ee}.node rect{fill:#1d2430;stroke:#66728a}
.node.files rect{fill:#12161d;stroke:#465064}.node text{fill:#dde3ee}.node.files text{fill:#9aa6ba}.edge{stroke:#5c6880}.tip{fill:#5c6880}}
"""


class Node(namedtuple("Node", "name kind label title status")):
    """A stage (kind "stage") or files (kind "files"); title is the full text, status a class or ""."""

    __slots__ = ()


class Edge(namedtuple("Edge", "start end kind")):
    """From one node's name to another's; kind "files" or "needs"."""

    __slots__ = ()


# --- text ------------------------------------------------------------------------------------------------------------

def escaped(value: object) -> str:
    """Return any text fit for HTML and SVG, between tags and between quotes; terminal sequences go, other control characters are
    shown."""
    text = value if isinstance(value, str) else str(value)
    if "\x1b" in text:
        text = ANSI.sub("", text)
    return "".join(ENTITIES.get(c) or (c if c.isprintable() or c in "\n\t\u00a0\u202f" else ascii(c)[1:-1]) for c in text)


def shortened(text: str, length: int, cells: Cells = len) -> str:
    """Return a text of at most *length* cells, the middle left out: beginning and end of a path both tell."""
    if cells(text) <= length:
        return text
    tail = (length - 1) // 2
    ending = _fitting(text[::-1], tail, cells)[::-1]
    return _fitting(text, length - 1 - tail, cells) + "\u2026" + ending


def _fitting(text: str, room: int, cells: Cells) -> str:
    """Return as much of the beginning of a text as takes at most *room* cells."""
    for place, character in enumerate(text):
        room -= cells(character)
        if room < 0:
            return text[:place]
    return text


# --- the layout of a graph -------------------------------------------------------------------------------------------

def layers_of(nodes: Sequence[Node], edges: Sequence[Edge]) -> List[List[str]]:
    """Return the nodes' names by layer: each after all that lead to it; files that nobody makes stand just before their first
    reader.

    Edges of a circle, which no valid pipeline has, are left out.
    """
    after: Dict[str, List[str]] = {node.name: [] for node in nodes}
    open_edges = {node.name: 0 for node in nodes}
    for edge in edges:
        if edge.start in after and edge.end in after and edge.start != edge.end:
            after[edge.start].append(edge.end)
            open_edges[edge.end] += 1
    sources = {name for name, count in open_edges.items() if not count}
    depth = {node.name: 0 for node in nodes}
    ready = [node.name for node in nodes if not open_edges[node.name]]
    for name in ready:
        for end in after[name]:
            depth[end] = max(depth[end], depth[name] + 1)
            open_edges[end] -= 1
            if not open_edges[end]:
                ready.append(end)
    for node in nodes:
        if node.kind == "files" and node.name in sources and after[node.name]:
            depth[node.name] = max(0, min(depth[end] for end in after[node.name]) - 1)
    layers: List[List[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for node in nodes:
        layers[depth[node.name]].append(node.name)
    return [layer for layer in layers if layer]


def ordered(layers: List[List[str]], edges: Sequence[Edge]) -> List[List[str]]:
    """Return the layers with their nodes in an order of few crossings: each near the mean place of its neighbours."""
    before: Dict[str, List[str]] = {}
    after: Dict[str, List[str]] = {}
    for edge in edges:
        before.setdefault(edge.end, []).append(edge.start)
        after.setdefault(edge.start, []).append(edge.end)
    layers = [list(layer) for layer in layers]
    for turn in range(ROUNDS):
        near = after if turn % 2 else before
        place = {name: (index + 0.5) / len(layer) for layer in layers for index, name in enumerate(layer)}
        for layer in reversed(layers) if turn % 2 else layers:
            mean = {name: sum(place[one] for one in near.get(name, ()) if one in place) / len(near[name]) if near.get(name)
                    else place[name] for name in layer}
            layer.sort(key=lambda name: mean[name])
            place.update((name, (index + 0.5) / len(layer)) for index, name in enumerate(layer))
    return layers


def without_implied(edges: Sequence[Edge], layers: List[List[str]]) -> List[Edge]:
    """Return the edges without those that a longer way already tells."""
    order = {name: index for index, name in enumerate(name for layer in layers for name in layer)}
    ends: Dict[str, List[Edge]] = {}
    for edge in edges:
        ends.setdefault(edge.start, []).append(edge)
    reach: Dict[str, int] = {}          # a set of nodes as the bits of a number
    kept = []
    for name in sorted(order, key=lambda one: -order[one]):
        far = 0
        for edge in sorted(ends.get(name, ()), key=lambda one: order.get(one.end, 0)):
            bit = 1 << order[edge.end]
            if not far & bit:
                kept.append(edge)
                far |= bit | reach.get(edge.end, 0)
        reach[name] = far
    return kept


def columns_of(layers: List[List[str]]) -> List[List[str]]:
    """Return the layers cut into columns of at most COLUMN_NODES, evenly."""
    columns = []
    for layer in layers:
        count = -(-len(layer) // COLUMN_NODES)
        size = -(-len(layer) // count)
        columns += [layer[start:start + size] for start in range(0, len(layer), size)]
    return columns


# --- drawings --------------------------------------------------------------------------------------------------------

def graph_svg(nodes: Sequence[Node], edges: Sequence[Edge], title: str, standalone: bool = False, cells: Cells = len) -> str:
    """Return a drawing of a graph, from left to right; a long one goes on in bands below."""
    layers = layers_of(nodes, edges)
    if len(edges) > 2 * len(nodes):
        edges = without_implied(edges, layers)
    columns = columns_of(ordered(layers, edges))
    known = {node.name: node for node in nodes}
    dense = len(nodes) > 40
    high, gap_x, gap_y = (22, 44, 6) if dense else (30, 56, 14)
    wide = {name: min(172.0, max(64.0, 20 + CHARACTER_PX * cells(node.label))) for name, node in known.items()}
    boxes: Dict[str, Tuple[float, float, float]] = {}       # name -> left, top, width
    lanes: Dict[str, float] = {}                            # name -> where edges from another band run, above its own
    top, right = 8.0, 0.0
    bands = bands_of(columns, wide, gap_x)
    for band in bands:
        tallest = max(len(column) for column in band)
        left = float(MARGIN_PX) if len(bands) > 1 else 1.0
        for column in band:
            width = max(wide[name] for name in column)
            offset = (tallest - len(column)) * (high + gap_y) / 2
            for index, name in enumerate(column):
                boxes[name] = (left, top + offset + index * (high + gap_y), width)
                lanes[name] = top - 12
            left += width + gap_x
        right = max(right, left - gap_x)
        top += tallest * (high + gap_y) - gap_y + 34
    lines = [_curve(boxes[edge.start], boxes[edge.end], high, lanes[edge.start], lanes[edge.end], edge.kind) for edge in edges
             if edge.start in boxes and edge.end in boxes]
    return _svg(right + (16 if len(bands) > 1 else 1), top - 34 + 8, title,
                lines + [_box(known[name], boxes[name], high, cells) for name in boxes], standalone)


def bands_of(columns: List[List[str]], wide: Dict[str, float], gap: float) -> List[List[List[str]]]:
    """Return the columns in bands that are at most BAND_PX wide."""
    bands: List[List[List[str]]] = []
    left = 0.0
    for column in columns:
        width = max(wide[name] for name in column)
        if not bands or left + width > BAND_PX - MARGIN_PX - 16:
            bands.append([])
            left = 0.0
        bands[-1].append(column)
        left += width + gap
    return bands


def _svg(width: float, height: float, title: str, parts: List[str], standalone: bool = False) -> str:
    space = ' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
    style = "<style>%s</style>" % STYLE if standalone else ""
    return '<svg%s width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" role="img" aria-label="%s"><title>%s</title>%s%s</svg>' % (
        space, width, height, width, height, escaped(title), escaped(title), style, "\n".join(parts))


def _curve(start: Tuple[float, float, float], end: Tuple[float, float, float], high: float, from_lane: float, lane: float,
           kind: str) -> str:
    """Draw an edge and its tip: a curve from the right to the left side; into another band, along the lane above it."""
    x1, y1, x2, y2 = start[0] + start[2], start[1] + high / 2, end[0], end[1] + high / 2
    if from_lane == lane:
        bend = max(20.0, (x2 - x1) / 2)
        path = "M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1f" % (x1, y1, x1 + bend, y1, x2 - bend, y2, x2 - 5, y2)
    else:
        path = "M%.1f %.1fh6q5 0 5 5V%.1fq0 5 -5 5H%.1fq-5 0 -5 5V%.1fq0 5 5 5H%.1f" % (x1, y1, lane - 5, x2 - 9, y2 - 5, x2 - 5)
    return '<path class="edge %s" d="%s"/><path class="tip" d="M%.1f %.1fl-6 -3.2v6.4z"/>' % (kind, path, x2, y2)


def _box(node: Node, box: Tuple[float, float, float], high: float, cells: Cells) -> str:
    left, top, width = box
    label = shortened(node.label, int((width - 16) / CHARACTER_PX), cells)
    return ('<g class="node %s %s"><title>%s</title><rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="%d"/>'
            '<text x="%.1f" y="%.1f" text-anchor="middle">%s</text></g>') % (
                node.kind, node.status, escaped(node.title), left, top, width, high, 4 if node.kind == "stage" else 10,
                left + width / 2, top + high / 2 + 4, escaped(label))


def timeline_svg(rows: Sequence[Tuple[str, str, List[Tuple[float, float, str, str]]]], length_s: float, title: str, cells: Cells = len) -> str:
    """Return a timeline. rows: (label, its title, [(start, end, class, title)]), in seconds since the beginning."""
    side, wide = 168, 836
    high, gap = (13, 3) if len(rows) > 40 else (17, 6)
    bottom = 26 + len(rows) * (high + gap)
    length_s = max(length_s, 0.001)
    parts = []
    for tick in ticks(length_s):
        x = side + wide * tick / length_s
        parts.append('<line class="grid" x1="%.1f" x2="%.1f" y1="20" y2="%d"/><text class="axis" x="%.1f" y="13" text-anchor="middle">%s</text>' % (
            x, x, bottom, x, seconds_text(tick)))
    for index, (label, about, spans) in enumerate(rows):
        y = 26 + index * (high + gap)
        parts.append('<text class="label" x="%d" y="%.1f" text-anchor="end"><title>%s</title>%s</text>' % (
            side - 10, y + high / 2 + 4, escaped(about), escaped(shortened(label, 24, cells))))
        for start, end, kind, text in spans:
            x = side + wide * max(0.0, min(start, length_s)) / length_s
            width = max(2.0, wide * (min(end, length_s) - max(0.0, start)) / length_s)
            parts.append('<rect class="span %s" x="%.1f" y="%.1f" width="%.1f" height="%d" rx="2"><title>%s</title></rect>' % (
                kind, min(x, side + wide - 2), y, width, high, escaped(text)))
    return _svg(side + wide + 24, bottom + 6, title, parts)


def ticks(length: float) -> List[float]:
    """Return some five round times from 0 to *length* seconds."""
    steps = [10.0 ** power * digit for power in range(-4, 1) for digit in (1, 2, 5)] + [10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600,
            7200, 10800, 21600, 43200]
    step = next((one for one in steps if length / one <= 6), 86400.0 * -(-length // (6 * 86400)))
    return [index * step for index in range(int(length / step + 1e-9) + 1)]


def seconds_text(seconds: float) -> str:
    """Return a duration for people: 0.25 s, 12.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 0.9995:
        return "%s s" % ("%.3f" % seconds).rstrip("0").rstrip(".")
    if seconds < 59.95:
        return "%s s" % ("%.1f" % seconds if seconds != int(seconds) else "%d" % seconds)
    minutes, rest = divmod(int(seconds + 0.5), 60)
    if minutes < 60:
        return "%d min %02d s" % (minutes, rest) if rest else "%d min" % minutes
    hours, minutes = divmod(minutes, 60)
    return "%d h %02d min" % (hours, minutes) if minutes else "%d h" % hours


def sparkline_svg(values: Sequence[float], marks: Sequence[bool], title: str, width: int = 92, height: int = 20) -> Optional[str]:
    """Return a small line of values, the last one dotted; marks: those that failed. None for fewer than two values."""
    if len(values) < 2:
        return None
    top = max(values) or 1.0
    points = [(3 + (width - 6) * index / (len(values) - 1), height - 3 - (height - 6) * value / top) for index, value in enumerate(values)]
    parts = ['<polyline class="spark" points="%s"/>' % " ".join("%.1f,%.1f" % point for point in points)]
    parts += ['<circle class="dot failed" cx="%.1f" cy="%.1f" r="2"/>' % point for point, mark in zip(points[:-1], marks) if mark]
    parts.append('<circle class="dot%s" cx="%.1f" cy="%.1f" r="2.2"/>' % ((" failed" if marks[-1] else "",) + points[-1]))
    return _svg(width, height, title, parts)
