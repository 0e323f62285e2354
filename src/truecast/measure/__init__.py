"""MEASURE: what a model costs and how well it does its task: time, memory, size, and scores over labels and vectors.

Data flow: a callable → `timing` → percentiles; this process → `memory`; arrays of predictions → `scores`. Nothing here
knows what a study or an artifact is.
"""
