"""What a language model is made of, found by running it on two tokens rather than by knowing its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmrs_lightning.modules import evaluating


@dataclass
class Anatomy:
    """The parts of a language model, in the order in which a text passes them.

    Args:
        layers: The transformer layers from the bottom, each with its name in the model; empty if they cannot be told
            apart, as where all layers share their weights.
        above: Modules that only run behind the last layer, such as a final normalisation.
        arity: Length of the tuple that a layer returns; 0 if it returns the states alone.
        num_states: How many hidden states the model hands out, those below the first layer included.
        looks_ahead: Whether a token's state depends on the tokens behind it.
        can_start: Whether layers take states as their first argument, so that the model can start in its middle.
    """

    layers: dict[str, nn.Module]
    above: set[str]
    arity: int
    num_states: int
    looks_ahead: bool
    can_start: bool

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def place(self, parameter: str) -> int:
        """Say where a parameter of this name works: 0 below the first layer, k in layer k, depth + 1 above the last.

        What layers share, such as embeddings of relative positions, counts as below.
        """
        for number, name in enumerate(self.layers, 1):
            if parameter.startswith(f"{name}."):
                return number
        return self.depth + 1 if parameter.rpartition(".")[0] in self.above else 0

    @classmethod
    @torch.no_grad()
    def of(cls, backbone: Any) -> Anatomy:
        """Look at a model of `transformers`; its modes stay as they are."""
        layers = _layers(backbone)
        last = next(reversed(layers.values()), None)
        order: list[str] = []
        calls: list[tuple[tuple[Any, ...], Any]] = []
        with ExitStack() as hooks:
            for name, module in backbone.named_modules():
                hooks.callback(module.register_forward_pre_hook(lambda *_, name=name: order.append(name)).remove)
            if last is not None:
                hooks.callback(last.register_forward_hook(lambda _, *call: calls.append(call)).remove)
            size = int(backbone.config.vocab_size)
            device = next(backbone.parameters()).device
            ids = torch.tensor([[size - 1, size - 2], [size - 1, size - 3]], device=device)
            with evaluating(backbone):
                found = backbone(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        states = found.last_hidden_state
        inputs, output = calls[0] if calls else ((None,), None)
        above: set[str] = set()
        if last is not None:
            start = order.index(next(reversed(layers)))
            inside = f"{next(reversed(layers))}."
            above = {name for name in order[start + 1 :] if not name.startswith(inside)} - set(order[:start])
        return cls(
            layers,
            above,
            len(output) if isinstance(output, tuple) else 0,
            len(found.hidden_states or ()),
            not torch.allclose(states[0, 0], states[1, 0], rtol=1e-5, atol=1e-6),
            isinstance(next(iter(inputs), None), Tensor),
        )

    @contextmanager
    def reading(self, depth: int) -> Iterator[list[Tensor]]:
        """Run the model up to layer `depth` (counted from 0) only; its input states are put into the list."""
        found: list[Tensor] = []
        layers = list(self.layers.values())
        hook = layers[depth].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        with self._passing(layers[depth:]):
            try:
                yield found
            finally:
                hook.remove()

    @contextmanager
    def starting(self, depth: int, states: Tensor) -> Iterator[None]:
        """Run the model from layer `depth` (counted from 0) on, with `states` (u, L, H) as its input.

        The model itself still makes masks, positions and whatever else layers get, and runs what is above them.
        """
        layers = list(self.layers.values())
        hook = layers[depth].register_forward_pre_hook(lambda _, inputs: (states, *inputs[1:]))
        with self._passing(layers[:depth]):
            try:
                yield
            finally:
                hook.remove()

    @contextmanager
    def _passing(self, layers: list[nn.Module]) -> Iterator[None]:
        """Make `layers` hand their input on."""

        def forward(states: Tensor, *_: Any, **__: Any) -> Any:
            return (states, *[None] * (self.arity - 1)) if self.arity else states

        replacement: Callable[..., Any] = forward
        for layer in layers:
            layer.forward = replacement
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


def _layers(backbone: Any) -> dict[str, nn.Module]:
    """Find the transformer layers: the list of as many equal modules as the configuration counts layers."""
    number = getattr(backbone.config, "num_hidden_layers", 0)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number and len({type(part) for part in module}) == 1:
            return {f"{name}.{place}": part for place, part in enumerate(module)}
    return {}
