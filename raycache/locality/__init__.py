"""Where the bytes of files are, and how to send work there: for fronts and users of the package.

`files` lists what URLs mean, `homes` asks the workers what they hold, `sharing` deals files and bundles out to nodes
(pure), `scheduling` says it in Ray's terms. Only `scheduling` and `nodes` import Ray, and not before they need it.
"""

from raycache.locality.files import files_of
from raycache.locality.homes import FileHome, Locality, NodeBytes, homes_of, nodes_for
from raycache.locality.nodes import Node, live_nodes
from raycache.locality.scheduling import node_options, placement_group, scheduling_options
from raycache.locality.sharing import Group, apportion, by_node, in_order, place_bundles

__all__ = [
    "FileHome",
    "Group",
    "Locality",
    "Node",
    "NodeBytes",
    "apportion",
    "by_node",
    "files_of",
    "homes_of",
    "in_order",
    "live_nodes",
    "node_options",
    "nodes_for",
    "place_bundles",
    "placement_group",
    "scheduling_options",
]
