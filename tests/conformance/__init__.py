"""The conformance matrix: one tiny checkpoint for each kind of decoder, exported and proven in every precision."""
