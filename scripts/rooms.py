"""Print the rooms of core, the arrows between them, upward arrows and circles: ``make rooms``.

Import-linter checks core's arrows (pyproject.toml); this prints them for a person, and looks for
circles in the plugins too, which the root does not name. Imports for typing alone and those inside
functions count.
"""

import sys
from collections import Counter
from pathlib import Path

import grimp
import networkx

ROOT = Path(__file__).resolve().parent.parent
CORE = "megatron_seams"
#: From the faces down to the words that every room uses; rooms on one level are independent.
LEVELS = (
    ("pytest_plugin", "__main__"),
    ("cli",),
    ("report", "scaffold"),
    ("governance", "runtime"),
    ("records",),
    ("planning",),
    ("recipes", "upstream", "seams"),
    ("base",),
    ("errors", "families", "hookspecs", "_version"),
)


def imports_of(package: str, source: Path) -> networkx.DiGraph:
    """Module -> module for every import inside a package."""
    sys.path.insert(0, str(source))
    graph = grimp.build_graph(package, cache_dir=None)
    found = networkx.DiGraph()
    found.add_nodes_from(graph.modules)
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            found.add_edge(module, other)
    return found


def room_of(module: str) -> str:
    """The first name below the package; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def circles(graph: networkx.DiGraph) -> list[list[str]]:
    """Each set of modules that import one another in a ring."""
    rings = networkx.strongly_connected_components(graph)
    alone = [node for node in graph if graph.has_edge(node, node)]
    return [sorted(ring) for ring in rings if len(ring) > 1] + [[node] for node in alone]


def upward(graph: networkx.DiGraph) -> list[str]:
    """The imports of core that point up, or sideways between rooms on one level."""
    level = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
    wrong = []
    for module, other in sorted(graph.edges):
        here, there = room_of(module), room_of(other)
        if here and here != there and (not there or level[there] <= level[here]):
            wrong.append(f"{module} -> {other}")
    return wrong


def shown(graph: networkx.DiGraph) -> None:
    """Print each room with its size and what it imports."""
    arrows: dict[str, Counter[str]] = {}
    for module, other in graph.edges:
        if room_of(module) != room_of(other):
            arrows.setdefault(room_of(module), Counter())[room_of(other)] += 1
    sizes = Counter(room_of(module) for module in graph)
    for rooms in LEVELS:
        for room in rooms:
            below = ", ".join(
                f"{name} {count}" for name, count in sorted(arrows.get(room, {}).items())
            )
            print(f"{room:14} {sizes[room]:3} modules  -> {below or '-'}")


def main() -> int:
    """Print everything; 1 if an arrow points up or a circle is left."""
    core = imports_of(CORE, ROOT / "core" / "src")
    shown(core)
    wrong = upward(core)
    rings = circles(core)
    for source in sorted(ROOT.glob("plugins/*/src")):
        for folder in sorted(source.glob("*/__init__.py")):
            rings += circles(imports_of(folder.parent.name, source))
    for line in wrong:
        print(f"upward: {line}")
    for ring in rings:
        print(f"circle: {' -> '.join(ring)}")
    print(f"{len(rings)} circles, {len(wrong)} upward")
    return 1 if wrong or rings else 0


if __name__ == "__main__":
    sys.exit(main())
