"""READ: what is stored on disk, tensor by tensor, with nothing loaded and no code executed."""
