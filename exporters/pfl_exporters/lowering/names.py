"""What a node of a graph is called in the graph that was traced, whatever toolchains call it later."""

from __future__ import annotations

from torch import fx

#: Entry of a node's ``meta``: the name that the node, or the one in whose place it is, has in the traced graph. It goes
#: through what toolchains make of a graph, as they keep ``meta`` and give names of their own.
TRACED_AS = "pfl_traced_as"


def traced_as(node: fx.Node) -> str:
    """The name that a node, or the one in whose place it is, has in the traced graph."""
    return str(node.meta.get(TRACED_AS, node.name))
