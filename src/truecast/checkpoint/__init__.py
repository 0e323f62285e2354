"""READ: what is stored on disk, tensor by tensor, with nothing loaded and no code executed."""

from truecast.checkpoint.model import Checkpoint, FileRange, StoredTensor
from truecast.checkpoint.opening import open_checkpoint

__all__ = ["Checkpoint", "FileRange", "StoredTensor", "open_checkpoint"]
