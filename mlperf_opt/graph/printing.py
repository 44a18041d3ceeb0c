"""A graph as text: one line a node, with the spec of its weights and value."""

from __future__ import annotations

from mlperf_opt.graph.graph import Graph


def to_text(graph: Graph) -> str:
    """Return the graph as text: its signature, its state, and a line for each node."""
    inputs = ", ".join(f"{name}: {spec}" for name, spec in graph.inputs.items())
    lines = [f"{graph.name}({inputs}) -> {', '.join(graph.outputs)}"]
    lines += [f"  state {s.name}: {s.spec}, then {s.update}" for s in graph.state]
    values = set(graph.inputs) | {s.name for s in graph.state} | {n.output for n in graph.nodes}
    for node in graph.nodes:
        arguments = [name if name in values else f"{name}: {graph.specs[name]}" for name in node.inputs if name]
        settings = "".join(f" {key}={value}" for key, value in sorted(node.attributes.items()))
        lines.append(f"  {node.output}: {graph.specs[node.output]} = {node.op}({', '.join(arguments)}){settings}")
    return "\n".join(lines)
