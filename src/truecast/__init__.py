"""truecast casts a Hugging Face checkpoint to ONNX for the runtime it will be deployed on, and proves the result.

    artifact = truecast.export("checkpoint", "out", precision="int4")
    artifact = truecast.open("out")
    print(artifact.generate("The capital of France is").text)

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Artifact", "Request", "__version__", "diagnose", "export", "inspect", "open"]

if TYPE_CHECKING:
    from truecast.api import Artifact, diagnose, export, inspect, open
    from truecast.request import Request


def __getattr__(name: str) -> Any:
    if name in __all__:
        from truecast import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
