"""Marks where each layer of a model begins and ends in a pass, and replaces layers like an earlier one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

from pipelines.train.plan.memory.counter import LiveBytes
from pipelines.train.plan.memory.timeline import Stretch, unfold
from se_model.loss import unwrap

Place = str | tuple[str, int]
"""A stretch of a pass: `before`, `between` or `after` the layers, or `forward` or `backward` with a layer."""


class Watch:
    """Watches the layers of a language model; only the first of each kind computes.

    The model is changed for good. Gradients of parameters are dropped as soon as they are complete: how long
    they stay is the engine's affair.

    Args:
        model: with its adapter and attention, on `meta`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.live: LiveBytes | None = None
        self._stretches: dict[Place, Stretch] = {}
        self._at: Place | None = None
        self._start = 0
        self._gradients = 0
        self.layers = self._watch_layers(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._drop)

    def start(self, live: LiveBytes) -> None:
        """Begins to record, before the first layer, what `live` counts."""
        self.live, self._stretches, self._at, self._gradients = live, {}, None, 0
        self.begin("before")

    def begin(self, name: Place | None) -> None:
        """Ends the stretch under way, and starts the next."""
        assert self.live is not None
        if self._at is not None:
            level, peak = self.live.level, self.live.peak
            kind = self._at if isinstance(self._at, str) else self._at[0]
            ended = Stretch(kind, level - self._start, peak - self._start, self._gradients)
            before = self._stretches.get(self._at)
            self._stretches[self._at] = ended if before is None else before.then(ended)
        self._at, self._start, self._gradients = name, self.live.level, 0
        self.live.restart_peak()

    def at(self, name: Place) -> bool:
        """Says whether the stretch under way has this name."""
        return self._at == name

    def finish(self) -> list[Stretch]:
        """Returns the stretches of the whole model, those of its layers repeated for all layers alike."""
        self.begin(None)
        self.live = None
        nothing = Stretch("nothing")
        kinds = range(max(self.layers, default=-1) + 1)
        first = [self.layers.index(kind) for kind in kinds]
        forward, backward = (
            [self._stretches.get((direction, layer), nothing) for layer in first]
            for direction in ("forward", "backward")
        )
        before, between, after = (
            self._stretches.get(name, nothing) for name in ("before", "between", "after")
        )
        return unfold(before, forward, between, backward, after, self.layers)

    def _drop(self, parameter: nn.Parameter) -> None:
        self._gradients += parameter.numel()
        parameter.grad = None

    def _watch_layers(self, model: nn.Module) -> list[int]:
        causal_lm = unwrap(model)
        decoder = getattr(causal_lm, causal_lm.base_model_prefix)
        layers = max(
            (module for module in decoder.modules() if isinstance(module, nn.ModuleList)),
            key=len,
            default=nn.ModuleList(),
        )
        kinds: dict[Hashable, int] = {}
        firsts: list[_Watched] = []
        numbers = []
        reached = _trains(causal_lm.get_input_embeddings())
        for index, layer in enumerate(layers):
            number = kinds.setdefault((reached, _kind(layer)), len(kinds))
            numbers.append(number)
            reached = reached or _trains(layer)
            last = index == len(layers) - 1
            if number == len(firsts):
                firsts.append(_Watched(self, layer, index, last))
                layers[index] = firsts[-1]
            else:
                layers[index] = _Again(self, firsts[number], index, last)
        return numbers


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _kind(layer: nn.Module) -> Hashable:
    modules = tuple((name, type(module)) for name, module in layer.named_modules())
    parameters = tuple(
        (name, parameter.shape, parameter.dtype, parameter.requires_grad)
        for name, parameter in layer.named_parameters()
    )
    return modules, parameters


class _Watched(nn.Module):
    """A layer whose beginning and end are told, forward and backward."""

    def __init__(self, watch: Watch, layer: nn.Module, index: int, last: bool) -> None:
        super().__init__()
        self.layer = layer
        _set_plainly(self, watch=watch, index=index, last=last, beside=None)

    def __getattr__(self, name: str) -> Any:
        # A model's loop may ask its layers what they are.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the layer."""
        self.watch.begin(("forward", self.index))
        hidden = args[0] if args else kwargs["hidden_states"]
        output = self.layer(*args, **kwargs)
        beside = len(output) - 1 if isinstance(output, tuple) else None
        _set_plainly(self, beside=beside)  # how much is returned beside the hidden states
        _tell_backward(self.watch, self.index, hidden, output[0] if isinstance(output, tuple) else output)
        if self.last:
            self.watch.begin("between")
        return output


class _Again(nn.Module):
    """In the place of a layer like one before: hands its input on."""

    def __init__(self, watch: Watch, first: _Watched, index: int, last: bool) -> None:
        super().__init__()
        _set_plainly(self, watch=watch, first=first, index=index, last=last)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.first, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden states, as they came."""
        self.watch.begin(("forward", self.index))
        hidden = args[0] if args else kwargs["hidden_states"]
        output = hidden.view_as(hidden)
        _tell_backward(self.watch, self.index, hidden, output)
        if self.last:
            self.watch.begin("between")
        return output if self.first.beside is None else (output, *[None] * self.first.beside)


def _set_plainly(module: nn.Module, **attributes: Any) -> None:
    """Sets attributes that are no submodules, whatever they are."""
    for name, value in attributes.items():
        object.__setattr__(module, name, value)


def _tell_backward(watch: Watch, index: int, hidden: Tensor, output: Tensor) -> None:
    if output.requires_grad:
        output.register_hook(lambda _: watch.begin(("backward", index)))

    def end(_: Tensor) -> None:
        # The layer before may have begun at this very gradient.
        if watch.at(("backward", index)):
            watch.begin("after")

    if hidden.requires_grad:
        hidden.register_hook(end)
