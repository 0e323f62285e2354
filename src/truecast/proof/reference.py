"""The reference: the model author's own code in float32, as the source's own loader loads it.

Data flow: the source → the model as transformers loads it (`source.loading`), buffers included → weights, a run of rows
at a time, as the artifact holds them (`load_held`). There is one model; loading other weights replaces the ones it had,
so that memory holds the floats once. Only of a GGUF file the weights are streamed in by us (`load_checkpoint`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from truecast.checkpoint.divisions import activation_scales
from truecast.checkpoint.model import Checkpoint, StoredTensor
from truecast.dialects.experts import ExpertsForm
from truecast.proof.fresh import Fresh
from truecast.proof.held import HeldWeight, row_chunks
from truecast.proof.operators import Array
from truecast.proof.source.loading import Loaded, load_author, load_decoder
from truecast.proof.table import Stack
from truecast.runtime.processors import default_threads
from truecast.trace.author import AuthorModule
from truecast.trace.conversion import as_parameters, checkpoint_renamer
from truecast.trace.experts import forms_of
from truecast.trace.module import shared_names
from truecast.trace.quiet import KERNELS, silenced
from truecast.trace.skeleton import tied_names, with_divisions
from truecast.weights.sources import Sources, finite_rows

SMALL_MODEL = 10_000_000
"""Weights below which one thread of torch is the fastest: its threads wait for each other longer than they compute."""


@dataclass
class Reference:
    """The author's model. `sources` finds a parameter's tensor in the checkpoint.

    `transposed` names the parameters whose module holds them [in, out]; products of the graph hold them [out, in].
    `experts` are the forms of the modules whose parameters hold all experts of a layer, by the names of those. `loaded`
    is how transformers loaded the model; None for a module in memory.
    """

    model: PreTrainedModel
    sources: Sources
    transposed: frozenset[str]
    experts: Mapping[str, ExpertsForm] = field(default_factory=dict)
    loaded: Loaded | None = None
    fresh: Fresh = field(init=False)

    def __post_init__(self) -> None:
        """Remembers the model as it is before its first call."""
        self.fresh = Fresh.of(self.model)

    @classmethod
    def build(
        cls,
        checkpoint: Checkpoint,
        trust_remote_code: bool = False,
        original: Checkpoint | None = None,
        weights: bool = True,
    ) -> Reference:
        """The model of `checkpoint`, with the weights of `original` where there is one.

        Without `weights`, and of a GGUF file, they have no values yet. Raises InputError when transformers loads none.
        """
        loaded = load_decoder(original or checkpoint, trust_remote_code, weights)
        loaded = loaded if original is None else replace(loaded, made=checkpoint)
        model = loaded.model
        with_divisions(model, activation_scales(checkpoint))
        fitted = as_parameters(checkpoint, model)
        sources = Sources(fitted, _shapes(model), tied_names(model), checkpoint_renamer(model))
        return cls(model, sources, frozenset(_transposed(model)), _experts(model), loaded)._with_divisions()

    @classmethod
    def of_module(cls, author: AuthorModule, checkpoint: Checkpoint, trust_remote_code: bool = False) -> Reference:
        """A module without a cache: the user's own, or transformers' model of the class that `author` has."""
        model: Any = author.module
        if not author.is_pretrained:
            sources = Sources(checkpoint, _shapes(model), shared_names(model), lambda name: name, partial=True)
            return cls(model, sources, frozenset(_transposed(model)))
        loaded = load_author(model, checkpoint, trust_remote_code)
        model = _with_steps(loaded.model, model)
        with_divisions(model, activation_scales(checkpoint))
        fitted = as_parameters(checkpoint, model)
        sources = Sources(fitted, _shapes(model), tied_names(model), checkpoint_renamer(model), partial=True)
        return cls(model, sources, frozenset(_transposed(model)), loaded=loaded)._with_divisions()

    def _with_divisions(self) -> Reference:
        """The divisors of activations, which transformers has no place for, in the places that they were given."""
        for name, tensor in self.loaded.divisions.items() if self.loaded else ():
            parameter = self.parameters.get(self.sources.rename(name))
            if parameter is not None:
                parameter.copy_(tensor[...])
        return self

    @torch.no_grad()
    def outputs(self, author: AuthorModule, tensors: Sequence[Tensor]) -> dict[str, Array]:
        """The module's outputs by name; those of bfloat16, which NumPy lacks, in float32."""
        self.reset()
        outputs = author(tensors).items()
        return {name: (t.float() if t.dtype is torch.bfloat16 else t).numpy() for name, t in outputs}

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Every parameter and persistent buffer once, by its first name."""
        stored = set(self.model.state_dict())
        persistent = {name: buffer for name, buffer in self.model.named_buffers() if name in stored}
        return {**dict(self.model.named_parameters()), **persistent}

    def load_checkpoint(self, sources: Sources | None = None) -> None:
        """Has the weights of the checkpoint, or of other `sources`, in float32: streams them in if no loader did.

        Raises InputError where one is missing or, when it is streamed in, not finite.
        """
        for name, parameter in self.parameters.items():
            stored = self._stored(name, sources or self.sources)
            if stored is None or (self.loaded is not None and self.loaded.loader):
                continue
            for start, stop in row_chunks(stored.shape):
                _rows(parameter, start, stop).copy_(_tensor(finite_rows(stored, start, stop)))

    def _stored(self, name: str, sources: Sources) -> StoredTensor | None:
        """A parameter's tensor; None for one that the checkpoint lacks and that the graph may leave out."""
        return None if sources.partial and not sources.is_there(name) else sources[name]

    def load_held(self, weights: Mapping[str, HeldWeight]) -> None:
        """Takes the weights as an artifact holds them; one it lacks or has in another shape stays as it is.

        Modules that share a tensor part where the artifact holds it for each of them in another way: as a table and as
        the codes of a product.
        """
        for name, first in self.sources.tied.items():
            if self.held(name, weights) is not self.held(first, weights):
                self._untie(name)
        for name, parameter in self.parameters.items():
            weight = self.held(name, weights)
            if weight is None:
                continue
            if weight.stack is not None:
                self._load_stack(parameter, weight, weight.stack)
                continue
            target = parameter.T if self.turned(weight) else parameter
            if tuple(target.shape) != weight.shape:
                continue
            for start, stop in weight.chunks():
                _rows(target, start, stop).copy_(_tensor(weight.rows(start, stop)))

    def _untie(self, name: str) -> None:
        """Gives a module a parameter of its own."""
        owner, _, key = name.rpartition(".")
        module = self.model.get_submodule(owner)
        module._parameters[key] = nn.Parameter(module.get_parameter(key).detach().clone(), requires_grad=False)

    def _load_stack(self, parameter: Tensor, weight: HeldWeight, stack: Stack) -> None:
        form = self.experts.get(weight.parameter)
        for start, stop in weight.chunks() if form is not None else ():
            rows = stack.as_parameter(weight.rows(start, stop), form)  # type: ignore[arg-type]
            if (len(parameter), *rows.shape[1:]) == tuple(parameter.shape):
                _rows(parameter, start, stop).copy_(_tensor(rows))

    def held(self, name: str, weights: Mapping[str, HeldWeight]) -> HeldWeight | None:
        """The artifact's weight for a parameter; of tied ones, that whose initializers are called after it, if any."""
        tied = self.sources.tied
        names = [name, tied.get(name), *(k for k, v in tied.items() if v == name)]
        if names[1:] != [None]:
            same = (weight for weight in weights.values() if weight.parameter in names)
            own = next((weight for weight in same if f"{weight.initializers[0]}.".startswith(f"{name}.")), None)
            if own is not None:
                return own
        return next((weights[n] for n in names if n is not None and n in weights), None)

    def turned(self, weight: HeldWeight) -> bool:
        """Whether the artifact holds a weight with the axes of the author's parameter swapped."""
        return weight.transposed or (weight.quantization is not None and weight.parameter in self.transposed)

    @contextmanager
    def threads(self) -> Iterator[None]:
        """As many of torch's threads as suit the size of the model, and no advice, while the context lasts."""
        before = torch.get_num_threads()
        size = sum(parameter.numel() for parameter in self.parameters.values())
        torch.set_num_threads(1 if size < SMALL_MODEL else default_threads())
        try:
            with silenced(KERNELS):
                yield
        finally:
            torch.set_num_threads(before)

    def reset(self) -> None:
        """Undoes what earlier calls did to the model: some rotary embeddings remember the longest sequence."""
        self.fresh.restore()

    def new_cache(self) -> DynamicCache:
        """An empty cache: as the author's configuration has it where layers keep more than keys and values."""
        cache = DynamicCache(config=self.model.config)
        recurs = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)
        return cache if recurs else DynamicCache()

    @torch.no_grad()
    def step(self, cache: DynamicCache, ids: Array, mask: Array, positions: Array, keep: int = 0) -> Array:
        """Logits of the last `keep` positions (0: of all), [batch, keep, vocab], after what the cache holds.

        Several positions behind a recurrent state are run one by one: the authors' code for several begins anew.

        Args:
            cache: moved on by this call.
            ids: int64 [batch, new].
            mask: int64 [batch, past + new], 0 or 1.
            positions: int64 [batch, new].
            keep: how many positions.
        """
        if ids.shape[1] > 1 and _has_state(cache):
            runs = [slice(index, index + 1) for index in range(ids.shape[1])]
            ends = range(mask.shape[1] - len(runs) + 1, mask.shape[1] + 1)
            each = [self.step(cache, ids[:, s], mask[:, :e], positions[:, s]) for s, e in zip(runs, ends, strict=True)]
            return np.concatenate(each, 1)[:, -keep:]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        taken = inspect.signature(self.model.forward).parameters
        name = "past_key_values" if "past_key_values" in taken or "cache_params" not in taken else "cache_params"
        options: dict[str, Any] = {name: cache, "use_cache": True}
        if name == "cache_params":  # such a model's layers look at no other position, nor at masks of others
            inputs["attention_mask"] = mask[:, -ids.shape[1] :]
        if "logits_to_keep" in taken:
            options["logits_to_keep"] = keep
        tensors = {name: _tensor(array) for name, array in inputs.items() if name in taken}
        logits: Array = self.model(**tensors, **options).logits.numpy()
        return logits[:, -keep:]

    @contextmanager
    def in_float64(self) -> Iterator[None]:
        """The same model in float64 while the context lasts; casts inside the author's code stay as they are."""
        self.reset()
        nn.Module.to(self.model, torch.float64)
        masks = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
        author: Any = masks["eager"]
        masks["eager"] = lambda *args, **kwargs: _finite(author(*args, **kwargs))
        try:
            yield
        finally:
            masks["eager"] = author
            nn.Module.to(self.model, torch.float32)
            self.reset()


def _has_state(cache: DynamicCache) -> bool:
    """Whether a layer holds a recurrent state."""
    layers = (layer for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin))
    return any(any(layer.has_previous_state.values()) for layer in layers)


HIDDEN = -1e30
"""In a mask, as good as float64's least value, and still finite where the author casts the scores to float32."""


def _finite(mask: Any) -> Any:
    return mask.clamp(min=HIDDEN) if isinstance(mask, Tensor) and mask.is_floating_point() else mask


def _with_steps(model: nn.Module, author: nn.Module) -> nn.Module:
    """The model with the modules that the author's has beyond those of its class: what follows the encoder."""
    for name, step in author.named_children():
        if name not in dict(model.named_children()):
            for part in step.modules():
                for key, fake in part._parameters.items():
                    if isinstance(fake, FakeTensor):
                        part._parameters[key] = nn.Parameter(torch.empty(fake.shape, dtype=fake.dtype), False)
            model.add_module(name, step)
    return model


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Every parameter and persistent buffer, under each of its names."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    return shapes | {name: tuple(t.shape) for name, t in model.state_dict().items()}


def _experts(model: nn.Module) -> dict[str, ExpertsForm]:
    """The forms of experts by the names of their parameters."""
    return {
        f"{name}.{part}": form
        for name, form in forms_of(model).items()
        for part in (form.up, form.down, form.up_bias, form.down_bias)
        if part
    }


def _transposed(model: nn.Module) -> Iterator[str]:
    """Weights of transformers' Conv1D, which holds [in, out] unlike torch's Linear."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding) and hasattr(module, "nf"):
            yield f"{name}.weight"


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    data = tensor.data
    return data[start:stop] if data.ndim else data.reshape(1)


def _tensor(array: Array) -> Tensor:
    """A tensor of an array; a copy where torch would complain that it may not be written to, or knows no such dtype."""
    contiguous = np.ascontiguousarray(array if array.dtype.kind in "biuf" else array.astype(np.float32))
    return torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy())
