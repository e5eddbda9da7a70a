"""Draws docs/house.svg: which room of provla/ knows which, as the imports say (all know core). python docs/house.py"""

from __future__ import annotations

import ast
from itertools import product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "provla"
COMMANDS = ("train", "report", "evaluate", "record", "analyze", "export", "serve")
PARTS = ("vision", "text", "fusion", "head", "scheduler", "augmentation")


def room(module: str) -> str:
    """The room of a dotted module below provla, its kind where several rooms are alike."""
    name = module.split(".")[1] if "." in module else ""
    return "commands" if name in COMMANDS else "parts of a policy" if name in PARTS else name


def arrows() -> set[tuple[str, str]]:
    """(who imports, what is imported), room by room, imports for types included."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        here = room(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("provla"):
                names = [node.module] if "." in str(node.module) else [f"provla.{alias.name}" for alias in node.names]
                found |= {(here, room(str(name))) for name in names}
    hidden = {"", "__init__", "types", "load", "Tokens", "Observation"}
    return {(a, b) for a, b in found if a != b and not {a, b} & hidden}


def reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without those that follow from others."""
    rooms = {one for edge in edges for one in edge}
    reach = set(edges)
    for middle in rooms:
        reach |= {(a, c) for a, c in product(rooms, rooms) if (a, middle) in reach and (middle, c) in reach}
    return {(a, b) for a, b in edges if not any((a, c) in reach and (c, b) in reach for c in rooms)}


def main(file: Path = HERE / "house.svg") -> None:
    edges = arrows()
    rooms = sorted({one for edge in edges for one in edge})
    floor: dict[str, int] = {}

    def depth(one: str) -> int:
        floor[one] = floor.get(one) or min((depth(a) - 1 for a, b in edges if b == one), default=0)
        return floor[one]

    for one in rooms:
        depth(one)
    floor = {one: level - min(floor.values()) for one, level in floor.items()}
    floor["core"] = 0
    rows = {level: [one for one in rooms if floor[one] == level] for level in sorted(set(floor.values()))}
    width = max(map(len, rows.values()))
    place = {
        one: ((i + 0.5) * width / len(row), 1.1 * level) for level, row in rows.items() for i, one in enumerate(row)
    }
    figure, axes = plt.subplots(figsize=(2.3 * width, 0.95 * (1 + max(rows))))
    for a, b in sorted(edge for edge in reduced(edges) if edge[1] != "core"):
        (x0, y0), (x1, y1) = place[a], place[b]
        arrow = FancyArrowPatch((x0, y0 - 0.27), (x1, y1 + 0.27), arrowstyle="-|>", mutation_scale=9, color="#8a8f98")
        axes.add_patch(arrow)
    for one, (x, y) in place.items():
        box = FancyBboxPatch((x - 0.44, y - 0.22), 0.88, 0.44, "round,pad=0.03", fc="#eef3fa", ec="#2f6db5")
        axes.add_patch(box)
        axes.text(x, y, one, ha="center", va="center", fontsize=9)
    axes.set_xlim(0, width)
    axes.set_ylim(-0.5, 1.1 * max(rows) + 0.5)
    axes.set_axis_off()
    with plt.rc_context({"svg.hashsalt": "provla", "svg.fonttype": "none"}):  # the same bytes for the same imports
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
