"""Floats of 16 bits: what a graph computed in them needs, and how it is measured where no kernel for them is."""
