"""BIND: every weight of the graph from the checkpoint's own bytes, streamed to disk and strictly accounted for."""
