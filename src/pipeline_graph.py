"""The graph of a pipeline: its stages, the files between them, who feeds whom; as JSON, Mermaid, Graphviz or SVG. Pure.

Above the leaves: it imports stage_order, svg_shapes, text_table. Who comes before whom is asked of stage_order, file by file.
"""
from __future__ import annotations

import json

import stage_order
import svg_shapes
from svg_shapes import Edge, Node
from text_table import display_width

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from model import PipelineSpec
    Json = Dict[str, Any]

FEW_NODES = 60      # with more, a drawing shows the stages only, and leaves the files between them out


def graph_of(spec: PipelineSpec, waits: Optional[Dict[str, List[str]]] = None) -> Tuple[List[Node], List[Edge]]:
    """Return (nodes, edges). Files that stages make are nodes of their own, between maker and reader. waits: what each stage waits
    for, see stage_waits.edges_of(): where no file of the spec tells of that, it is drawn as what the stage needs."""
    nodes = {stage.name: Node("stage:" + stage.name, "stage", stage.name, "stage %s: %s" % (stage.name, stage.processor), "")
             for stage in spec.stages}
    files: Dict[str, Node] = {}
    edges: Dict[Edge, None] = {}
    folders = stage_order.Folders(spec.stages)
    for place, stage in enumerate(spec.stages):
        fed = set()
        of_program = {maker for program in stage_order.program_of(stage) for maker in stage_order.makers(folders, place, program)}
        for pattern in dict.fromkeys(stage.inputs + stage.for_each + stage.watch):
            makers = [spec.stages[maker].name for maker in sorted(of_program | stage_order.makers(folders, place, pattern))]
            node = files.setdefault(pattern, Node("files:" + pattern, "files", pattern, "files " + pattern, ""))
            for name in makers:
                edges[Edge(nodes[name].name, node.name, "files")] = None
            fed.update(makers)
            edges[Edge(node.name, nodes[stage.name].name, "files")] = None
        for name in dict.fromkeys([*stage.needs, *(waits or {}).get(stage.name, ())]):
            if name not in fed and name in nodes:
                edges[Edge(nodes[name].name, nodes[stage.name].name, "needs")] = None
    used = {edge.start for edge in edges}
    for stage in spec.stages:
        if nodes[stage.name].name not in used:
            for pattern in stage.outputs or ("*",):
                path = "%s/%s" % (stage.output_dir, pattern)
                node = files.setdefault(path, Node("files:" + path, "files", path, "files " + path, ""))
                edges[Edge(nodes[stage.name].name, node.name, "files")] = None
    return list(nodes.values()) + list(files.values()), list(edges)


def stages_only(nodes: List[Node], edges: List[Edge]) -> Tuple[List[Node], List[Edge]]:
    """Return the graph with the files between stages left out."""
    after: Dict[str, List[str]] = {}
    for edge in edges:
        after.setdefault(edge.start, []).append(edge.end)
    stages = [node for node in nodes if node.kind == "stage"]
    found: Dict[Edge, None] = {}
    for edge in edges:
        if edge.start.startswith("stage:"):
            for end in [edge.end] if edge.end.startswith("stage:") else after.get(edge.end, []):
                found[Edge(edge.start, end, edge.kind)] = None
    return stages, list(found)


def makers_of(edges: List[Edge]) -> Dict[str, List[str]]:
    """Return {stage: the stages whose files it reads}."""
    found: Dict[str, List[str]] = {}
    makers: Dict[str, List[str]] = {}
    for edge in edges:
        if edge.start.startswith("stage:") and edge.end.startswith("files:"):
            makers.setdefault(edge.end, []).append(edge.start[6:])
    for edge in edges:
        if edge.start.startswith("files:"):
            for maker in makers.get(edge.start, ()):
                if maker not in found.setdefault(edge.end[6:], []):
                    found[edge.end[6:]].append(maker)
    return found


def drawing(nodes: List[Node], edges: List[Edge], title: str, standalone: bool = False) -> str:
    """Return the graph as SVG, without its files where there would be too many."""
    if len(nodes) > FEW_NODES:
        nodes, edges = stages_only(nodes, edges)
    return svg_shapes.graph_svg(nodes, edges, title, standalone, display_width)


def graph_text(spec: PipelineSpec, form: str, waits: Optional[Dict[str, List[str]]] = None) -> str:
    """Return the graph as text in one of the forms json, mermaid, dot, svg."""
    nodes, edges = graph_of(spec, waits)
    if form == "svg":
        return drawing(nodes, edges, "Pipeline %s" % spec.name, standalone=True) + "\n"
    return {"json": _json, "mermaid": _mermaid, "dot": _dot}[form](spec.name, nodes, edges)


def _json(name: str, nodes: List[Node], edges: List[Edge]) -> str:
    value = {"pipeline": name, "nodes": [{"id": node.name, "kind": node.kind, "label": node.label} for node in nodes],
             "edges": [{"from": edge.start, "to": edge.end, "kind": edge.kind} for edge in edges]}
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _mermaid(name: str, nodes: List[Node], edges: List[Edge]) -> str:
    ids = {node.name: "n%d" % number for number, node in enumerate(nodes)}
    lines = ["flowchart LR"]
    for node in nodes:
        lines.append("  %s%s\"%s\"%s" % ((ids[node.name],)
                                         + (("[", _mermaid_text(node.label), "]") if node.kind == "stage"
                                            else ("([", _mermaid_text(node.label), "])"))))
    lines += ["  %s %s %s" % (ids[edge.start], "-.->" if edge.kind == "needs" else "-->", ids[edge.end]) for edge in edges]
    return "\n".join(lines) + "\n"


def _mermaid_text(text: str) -> str:
    """Escape a label: Mermaid knows entities by number, and reads Markdown and HTML within quotes."""
    return "".join(c if c.isalnum() or c in " ./-_" else "#%d;" % ord(c) for c in text)


def _dot(name: str, nodes: List[Node], edges: List[Edge]) -> str:
    lines = ["digraph %s {" % _dot_text(name), "  rankdir=LR;", "  node [fontname=\"sans-serif\", fontsize=10];"]
    for node in nodes:
        shape = "shape=box, style=rounded" if node.kind == "stage" else "shape=note, color=gray50"
        lines.append("  %s [label=%s, %s];" % (_dot_text(node.name), _dot_text(node.label), shape))
    lines += ["  %s -> %s%s;" % (_dot_text(edge.start), _dot_text(edge.end), " [style=dashed]" if edge.kind == "needs" else "")
              for edge in edges]
    return "\n".join(lines + ["}"]) + "\n"


def _dot_text(text: str) -> str:
    """Quote a text for Graphviz: a backslash begins an escape, and an & an entity."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return '"%s"' % shown.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
