"""Scripts that make the true checkpoints under tests/data with the libraries that define their formats."""
