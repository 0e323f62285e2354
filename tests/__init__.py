"""Tests, laid out as the package is; `conformance` holds the matrix of model types."""
