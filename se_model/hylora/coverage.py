"""What trains, counted from the model itself: the proof that a configuration reached what it meant to."""

from collections import defaultdict
from dataclasses import dataclass, field

from torch import nn

from se_model.hylora.config import HyLoraConfig
from se_model.hylora.kinds import TRAINED_IN_FULL, Kind, parts


@dataclass
class KindCoverage:
    """Of one kind of parameter: what the bare model has, and what of it trains.

    Attributes:
        parameters, tensors: size of the bare model.
        trainable_parameters: numbers that receive gradients, low-rank updates included.
        trainable_tensors: tensors of the bare model that train in full or carry a low-rank update.
        trainable_dtypes: names of the dtypes in which the model holds what trains. An optimizer that keeps
            no float32 masters of its own rounds small updates of bfloat16 and float16 away.
    """

    parameters: int = 0
    trainable_parameters: int = 0
    tensors: int = 0
    trainable_tensors: int = 0
    trainable_dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Coverage:
    """What trains, per kind. `str()` gives a table."""

    kinds: dict[Kind, KindCoverage] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Parameters of the bare model, tied ones counted once."""
        return sum(row.parameters for row in self.kinds.values())

    @property
    def trainable_parameters(self) -> int:
        """Numbers that receive gradients."""
        return sum(row.trainable_parameters for row in self.kinds.values())

    def __str__(self) -> str:
        lines = [
            f"{'kind':<22} {'trains in':<17} {'tensors':>13} {'trainable':>14} {'of':>14} {'percent':>8}"
        ]
        for kind, row in self.kinds.items():
            tensors, dtypes = f"{row.trainable_tensors} of {row.tensors}", ", ".join(row.trainable_dtypes)
            lines.append(_line(kind, dtypes, tensors, row.trainable_parameters, row.parameters))
        lines.append(_line("all", "", "", self.trainable_parameters, self.parameters))
        return "\n".join(lines)


def coverage(model: nn.Module, config: HyLoraConfig | None = None) -> Coverage:
    """Count what trains in `model`, a transformers causal language model or a `PeftModel` around one.

    Raises:
        ValueError: if nothing trains or, given `config`, if any weight that it means to train does not.
    """
    kinds: dict[Kind, KindCoverage] = defaultdict(KindCoverage)
    weights: dict[Kind, set[str]] = defaultdict(set)
    reached: dict[Kind, set[str]] = defaultdict(set)
    dtypes: dict[Kind, set[str]] = defaultdict(set)
    counted: set[int] = set()
    for part in parts(model):
        for name, parameter in part.module.named_parameters(recurse=False):
            if id(parameter) in counted:
                continue
            counted.add(id(parameter))
            tensor = f"{part.name}.{name}"
            row = kinds[part.kind]
            if not part.added:
                row.parameters += parameter.numel()
                row.tensors += 1
                weights[part.kind] |= {tensor} if name == "weight" else set()
            if parameter.requires_grad:
                row.trainable_parameters += parameter.numel()
                reached[part.kind].add(tensor)
                dtypes[part.kind].add(str(parameter.dtype).removeprefix("torch."))
    for kind, row in kinds.items():
        row.trainable_tensors = len(reached[kind])
        row.trainable_dtypes = tuple(sorted(dtypes[kind]))
    if not any(reached.values()):
        raise ValueError(
            "nothing trains: every parameter is frozen (a loaded adapter trains only with is_trainable=True)"
        )
    if config is not None:
        for kind in (Kind.ATTENTION, *TRAINED_IN_FULL[config.variant]):
            _require_all(kind, weights[kind], reached[kind], config)
    return Coverage({kind: kinds[kind] for kind in Kind if kind in kinds})


def _require_all(kind: Kind, weights: set[str], reached: set[str], config: HyLoraConfig) -> None:
    frozen = sorted(weights - reached)
    if frozen or not weights:
        example = f", first {frozen[0]}" if frozen else ""
        raise ValueError(
            f"{config.variant} trains all {kind}, but {len(frozen)} of {len(weights)} stay frozen{example}"
        )


def _line(kind: str, dtypes: str, tensors: str, trainable: int, parameters: int) -> str:
    percent = 100 * trainable / parameters if parameters else 0.0
    return f"{kind:<22} {dtypes:<17} {tensors:>13} {trainable:>14,} {parameters:>14,} {percent:>7.2f}%"
