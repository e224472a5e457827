"""Hybrid networks — captioner, nowcaster, recogniser, translator — in torch and numpy, behind one contract.

Modules are loaded when they are first used: a process that only writes Parquet or answers SQL imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_models.captioner.captioner import Captioner
    from hybrid_models.contract import Hybrid
    from hybrid_models.errors import BadSample, UsageError
    from hybrid_models.interface import DecodingConfig, Interface
    from hybrid_models.layers.attention import AdditiveAttention
    from hybrid_models.layers.conv_lstm import ConvLSTM, ConvLSTMCell
    from hybrid_models.nowcaster.nowcaster import Nowcaster
    from hybrid_models.recogniser.recogniser import Recogniser
    from hybrid_models.translator.translator import Translator

TABLES = {"captioner": "captions", "nowcaster": "nowcasts", "recogniser": "actions", "translator": "translations"}
"""Hybrid → the table that its batch job writes."""

_HOMES = {
    "AdditiveAttention": "layers.attention",
    "BadSample": "errors",
    "Captioner": "captioner.captioner",
    "ConvLSTM": "layers.conv_lstm",
    "ConvLSTMCell": "layers.conv_lstm",
    "Hybrid": "contract",
    "Nowcaster": "nowcaster.nowcaster",
    "Recogniser": "recogniser.recogniser",
    "Translator": "translator.translator",
    "UsageError": "errors",
}
__all__ = [
    "HYBRIDS",
    "TABLES",
    "AdditiveAttention",
    "BadSample",
    "Captioner",
    "ConvLSTM",
    "ConvLSTMCell",
    "Hybrid",
    "Nowcaster",
    "Recogniser",
    "Translator",
    "UsageError",
    "decoding_of",
    "interface_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


class _Registry(Mapping[str, "type[Hybrid]"]):
    """Hybrids by name; each is a folder, with the class of its capitalised name in a module of its name, and what it is
    to others in its module `interface`."""

    def __getitem__(self, name: str) -> type[Hybrid]:
        if name not in TABLES:
            raise KeyError(name)
        kind: type[Hybrid] = getattr(importlib.import_module(f"{__name__}.{name}.{name}"), name.capitalize())
        return kind

    def __contains__(self, name: object) -> bool:
        return name in TABLES

    def __iter__(self) -> Iterator[str]:
        return iter(TABLES)

    def __len__(self) -> int:
        return len(TABLES)


HYBRIDS: Mapping[str, type[Hybrid]] = _Registry()


def interface_of(name: str) -> type[Interface]:
    """A hybrid without its net: needs no torch.

    Raises:
        KeyError: there is none of this name.
    """
    found: type[Interface] = _part(name, "interface")
    return found


def decoding_of(name: str) -> type[DecodingConfig]:
    """The `Decoding` of a hybrid's interface without the interface: needs no arrays.

    Raises:
        KeyError: there is none of this name.
    """
    found: type[DecodingConfig] = _part(name, "decoding")
    return found


def _part(name: str, module: str) -> Any:
    """The class of a module of a hybrid's that is called after both."""
    if name not in TABLES:
        raise KeyError(name)
    return getattr(importlib.import_module(f"{__name__}.{name}.{module}"), f"{name.capitalize()}{module.capitalize()}")
