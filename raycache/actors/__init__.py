"""The Ray shell: a coordinator, one worker per node, and what keeps them in order.

Modules that hold decisions (`catalog`, `assignment`, `cluster_state`, `loader`) and what runs on a node (`node`,
`volumes`) import no Ray; `coordinator`, `worker`, `reconciler` and `reservation` are the thin part that does.
Importing this package imports no Ray either.
"""
