"""TRACE: the author's own forward(), under fake tensors, as a graph without weights."""
