"""Which weights of the language model learn, when, and how fast."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from llmrs_lightning.encoders.anatomy import Anatomy
from llmrs_lightning.errors import ConfigError, listing, require

EVER = 1 << 31  # an epoch behind all others


class Tuning(ABC):
    """Which weights of the language model learn.

    A parameter's place is 0 below the first layer, k in the k-th layer from the bottom, depth + 1 above the last.
    """

    def adapt(self, backbone: Any, anatomy: Anatomy) -> None:  # noqa: B027, most need neither
        """Check that the model can be tuned so, and add what is to be added.

        Raises:
            ConfigError: If it cannot.
        """

    @abstractmethod
    def learns(self, name: str, place: int, depth: int, epoch: int) -> bool:
        """Say whether the parameter `name` at `place` learns in `epoch`, counted from the encoder's first."""

    def resting(self, depth: int, epoch: int) -> int:
        """Return how many of the `depth` layers, from the bottom, give the same states all through `epoch`."""
        return 0

    def rate(self, place: int, depth: int) -> float:
        """Return the factor of the encoder's learning rate at `place`."""
        return 1.0


class Full(Tuning):
    """All weights learn.

    Use when:
        There are enough interactions for them, and time.
    """

    def learns(self, name: str, place: int, depth: int, epoch: int) -> bool:
        """Say yes."""
        return True


class Frozen(Tuning):
    """No weight learns; the vectors are computed once.

    Use when:
        Time is short, or as the baseline that tuning has to beat.
    """

    def learns(self, name: str, place: int, depth: int, epoch: int) -> bool:
        """Say no."""
        return False

    def resting(self, depth: int, epoch: int) -> int:
        """All of them."""
        return depth


class LastLayers(Tuning):
    """The last layers learn, and what is above them.

    Requirements:
        A model whose layers have weights of their own.

    Use when:
        An epoch has to be quick: states below these layers are computed once.

    Args:
        number: How many layers learn.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def adapt(self, backbone: Any, anatomy: Anatomy) -> None:
        """Check the number of layers."""
        _need_layers(self, backbone, anatomy)
        if not 1 <= self.number <= anatomy.depth:
            raise ConfigError(
                "the model has not so many layers" if self.number > 0 else "no layer would learn",
                where="model.encoder.tuning.number",
                found=str(self.number),
                allowed=f"1 to {anatomy.depth}; the classes Full and Frozen tune all and none",
            )

    def learns(self, name: str, place: int, depth: int, epoch: int) -> bool:
        """Say whether the place is in the last layers or above."""
        return place > depth - self.number

    def resting(self, depth: int, epoch: int) -> int:
        """All but the last."""
        return depth - self.number


class GradualUnfreezing(Tuning):
    """The last layer learns first, and every few epochs one layer more, down to the embeddings.

    Requirements:
        A model whose layers have weights of their own.

    Use when:
        Few interactions would make a model that learns all at once forget. Source: Howard and Ruder, 2018, Universal
        language model fine-tuning for text classification, section 3.3.

    Args:
        every: Epochs from one layer to the next.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ConfigError(
                "a layer learns for an epoch or more before the next one joins",
                where="model.encoder.tuning.every",
                found=str(every),
            )
        self.every = every

    def adapt(self, backbone: Any, anatomy: Anatomy) -> None:
        """Check that there are layers."""
        _need_layers(self, backbone, anatomy)

    def learns(self, name: str, place: int, depth: int, epoch: int) -> bool:
        """Say whether it is the layer's turn, or was."""
        return place > depth - 1 - epoch // self.every

    def resting(self, depth: int, epoch: int) -> int:
        """Those whose turn has not come."""
        return max(depth - 1 - epoch // self.every, 0)


class LayerwiseDecay(Tuning):
    """All weights learn, each layer more slowly than the one above it.

    The top layer and what is above it learn at the encoder's rate, the layer below at `rate` times that, and so on down
    to the embeddings.

    Requirements:
        A model whose layers have weights of their own.

    Use when:
        Lower layers should stay close to what they were. Source: Howard and Ruder, 2018, section 3.1 (discriminative
        fine-tuning; their rate is 1 / 2.6); Clark et al., 2020, ELECTRA, appendix B (0.8 to 0.9).

    Args:
        rate: Factor from one layer to the one below.
    """

    def __init__(self, rate: float = 0.9) -> None:
        if not 0 < rate <= 1:
            raise ConfigError(
                "each lower layer learns more slowly",
                where="model.encoder.tuning.rate",
                found=str(rate),
                allowed="more than 0, up to 1",
            )
        self.decay = rate

    def adapt(self, backbone: Any, anatomy: Anatomy) -> None:
        """Check that there are layers."""
        _need_layers(self, backbone, anatomy)

    def learns(self, name: str, place: int, depth: int, epoch: int) -> bool:
        """Say yes."""
        return True

    def rate(self, place: int, depth: int) -> float:
        """Return rate to the power of the layers above `place`."""
        return float(self.decay ** max(depth - place, 0))


class BiasOnly(Tuning):
    """Biases learn, those of normalisation layers too.

    Requirements:
        A model with biases; Llama, for one, has none.

    Use when:
        A thousandth of the weights is to be stored for each task. Source: Ben Zaken et al., 2022, BitFit.
    """

    def adapt(self, backbone: Any, anatomy: Anatomy) -> None:
        """Check that there are biases."""
        if not any(_is_bias(name) for name, _ in backbone.named_parameters()):
            raise ConfigError(
                f"a {backbone.config.model_type} model has no biases to learn",
                where="model.encoder.tuning",
                found="BiasOnly",
                allowed="Full, LastLayers, GradualUnfreezing, LayerwiseDecay, LoRA, Frozen",
            )

    def learns(self, name: str, place: int, depth: int, epoch: int) -> bool:
        """Say whether it is a bias."""
        return _is_bias(name)


class LoRA(Tuning):
    """Weights stay, and low-rank changes of them learn: W x + (alpha / rank) B A x.

    Requirements:
        The extra `lora`.

    Use when:
        The model is too large for the optimiser's states of all its weights. Source: Hu et al., 2022, LoRA.

    Args:
        rank: Rank of the change.
        alpha: Its scale, divided by the rank.
        targets: Names of the linear layers to change, such as `query` or `self_attn.q_proj`; null for all linear layers
            inside the transformer layers.
        layers: How many of the last transformer layers are changed; null for all. States below them are computed once.
        dropout: Dropout on the input of the change.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16,
        targets: list[str] | None = None,
        layers: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        for name, value in (("rank", rank), ("layers", layers)):
            if value is not None and value < 1:
                raise ConfigError("at least 1 is needed", where=f"model.encoder.tuning.{name}", found=str(value))
        self.rank, self.alpha, self.targets, self.layers, self.dropout = rank, alpha, targets, layers, dropout

    def adapt(self, backbone: Any, anatomy: Anatomy) -> None:
        """Add the changes to the model."""
        peft = require("peft", "lora", "LoRA")
        if self.layers is not None:
            _need_layers(self, backbone, anatomy)
        chosen = self._choose(_linear(backbone), anatomy)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=chosen,
            # what GPT-2 calls Conv1D keeps its weight the other way round
            fan_in_fan_out=any(type(backbone.get_submodule(name)).__name__ == "Conv1D" for name in chosen),
        )
        peft.inject_adapter_in_model(config, backbone)

    def _choose(self, linear: list[str], anatomy: Anatomy) -> list[str]:
        depth = anatomy.depth
        lowest = depth - (self.layers or depth)
        inside = [name for name in linear if lowest < anatomy.place(f"{name}.weight") <= depth] if depth else linear
        if self.targets is None and inside:
            return inside
        chosen = set()
        for target in self.targets or [""]:
            found = [name for name in inside if f".{name}".endswith(f".{target}")]
            if not found:
                raise ConfigError(
                    "no linear layer has this name",
                    where="model.encoder.tuning.targets",
                    found=target or "null",
                    allowed=listing(dict.fromkeys(name.rpartition(".")[2] for name in inside), 40)
                    + ", alone or with what is before it, such as "
                    + (inside[0] if inside else "layer.0.query"),
                )
            chosen |= set(found)
        return sorted(chosen)

    def learns(self, name: str, place: int, depth: int, epoch: int) -> bool:
        """Say whether it is a change."""
        return "lora_" in name

    def resting(self, depth: int, epoch: int) -> int:
        """Those below the changed ones."""
        return max(depth - self.layers, 0) if self.layers else 0


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2].endswith("bias")


def _linear(backbone: nn.Module) -> list[str]:
    """Name the linear layers of a model."""
    return [n for n, part in backbone.named_modules() if isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D"]


def _need_layers(tuning: Tuning, backbone: Any, anatomy: Anatomy) -> None:
    if not anatomy.layers:
        raise ConfigError(
            f"the layers of a {backbone.config.model_type} model cannot be told apart",
            where="model.encoder.tuning",
            found=type(tuning).__name__,
            allowed="Full, BiasOnly, LoRA without `layers`, Frozen",
        )
