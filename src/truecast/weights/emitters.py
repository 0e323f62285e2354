"""Who writes the nodes of weights, by dialect."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from truecast.weights.contrib import ContribEmitter
from truecast.weights.emission import Emitter
from truecast.weights.standard import StandardEmitter

EMITTERS: Mapping[str, Emitter] = MappingProxyType({"ort": ContribEmitter(), "standard": StandardEmitter()})
