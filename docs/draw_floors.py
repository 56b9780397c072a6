"""`python docs/draw_floors.py`: draw the floors of the house from the imports, into `docs/floors.svg`.

A box is a room, a package or a module of `vqcompress`; a line leads from a room down to one that it imports. Lines that
follow from others are left out (transitive reduction).
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "floors.svg"
sys.path.insert(0, str(ROOT))

from tests.floors import FLOORS, modules, rooms_entered  # noqa: E402

WIDTH, FLOOR_HEIGHT, BOX_HEIGHT, MARGIN, LETTER = 1080, 84, 30, 44, 7.6
LINE_HEIGHT, LEAST_GAP = 40, 14  # where the rooms of a floor do not fit in one line

STYLE = """
  text { font: 13px ui-monospace, SFMono-Regular, Menlo, monospace; fill: #1f2328; text-anchor: middle }
  .floor { fill: #6e7781; text-anchor: start; font-size: 11px }
  rect { fill: #f6f8fa; stroke: #8c959f }
  path { fill: none; stroke: #8c959f; stroke-opacity: .55 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .floor { fill: #8b949e } rect { fill: #161b22; stroke: #6e7681 } path { stroke: #6e7681 }
  }
"""


def edges() -> dict[str, set[str]]:
    """Room -> rooms that it imports."""
    known = {room for floor in FLOORS for room in floor}
    found: dict[str, set[str]] = {room: set() for room in known}
    for room, path in modules():
        found[room] |= (rooms_entered(path) & known) - {room}
    return found


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """``graph`` without the edges that a longer way implies."""

    def reach(room: str) -> set[str]:
        return graph[room].union(*(reach(other) for other in graph[room]))

    return {room: others - set().union(*(reach(other) for other in others)) for room, others in graph.items()}


def in_lines(rooms: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The rooms of a floor in as few lines, about equally long ones, as their boxes fit into without overlapping."""
    count = 1
    while True:
        size = -(-len(rooms) // count)
        lines = [rooms[start : start + size] for start in range(0, len(rooms), size)]
        if all(sum(_width(room) + LEAST_GAP for room in line) <= WIDTH - MARGIN for line in lines):
            return lines
        count += 1


def _width(room: str) -> float:
    return LETTER * len(room) + 18


def picture() -> str:
    """The whole SVG."""
    graph = reduced(edges())
    place: dict[str, tuple[float, float]] = {}
    boxes, labels = [], []
    floors = [in_lines(rooms) for rooms in FLOORS]
    height = MARGIN + FLOOR_HEIGHT * len(floors) + LINE_HEIGHT * sum(len(lines) - 1 for lines in floors)
    y = height - MARGIN
    for number, lines in enumerate(floors):
        labels.append(f'<text class="floor" x="8" y="{y + 5:.0f}">{number}</text>')
        for rooms in lines:
            widths = [_width(room) for room in rooms]
            gap = (WIDTH - MARGIN - sum(widths)) / len(rooms)
            x = MARGIN + gap / 2
            for room, width in zip(rooms, widths, strict=True):
                place[room] = (x + width / 2, y)
                top = y - BOX_HEIGHT / 2
                boxes.append(f'<rect x="{x:.0f}" y="{top:.0f}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="5"/>')
                labels.append(f'<text x="{x + width / 2:.0f}" y="{y + 4:.0f}">{escape(room)}</text>')
                x += width + gap
            y -= LINE_HEIGHT
        y -= FLOOR_HEIGHT - LINE_HEIGHT
    drawn = [_line(place[room], place[other]) for room in sorted(graph) for other in sorted(graph[room])]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            "<title>Rooms of vqcompress and what they import</title>",
            f"<style>{STYLE}</style>",
            *drawn,
            *boxes,
            *labels,
            "</svg>\n",
        ]
    )


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    y1, y2 = y1 + BOX_HEIGHT / 2, y2 - BOX_HEIGHT / 2
    bend = (y2 - y1) / 2
    return f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"/>'


if __name__ == "__main__":
    PICTURE.write_text(picture())
