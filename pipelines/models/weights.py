"""Weights as safetensors: read with their sizes checked before any memory is taken, and never unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from hybrid_models.errors import UsageError
from pipelines import storage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybrid_models.contract import Hybrid

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
MAX_WEIGHTS, MAX_HEADER = 16 * 2**30, 100 * 2**20
"""Bytes of the weights, and of their header (the format's own limit)."""
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading JSON of another form than expected raises."""


def shapes(weights: bytes, where: str) -> dict[str, list[int]]:
    """Names and shapes of the tensors of a safetensors file, from its header alone.

    Raises:
        UsageError: the file is damaged.
    """
    length = int.from_bytes(weights[:8], "little")
    try:
        if not 0 < length <= min(len(weights) - 8, MAX_HEADER):
            raise ValueError("its header is cut off or too large")
        header = json.loads(weights[8 : 8 + length])
        return {
            name: [int(size) for size in entry["shape"]] for name, entry in header.items() if name != "__metadata__"
        }
    except DAMAGE as error:
        raise UsageError(f"{where}/{WEIGHTS} is damaged ({error}): copy the artifact again") from None


def check_shapes(hybrid: Hybrid, found: Mapping[str, Sequence[int]], where: str) -> None:
    """Compares names and shapes with those that a net needs.

    Raises:
        UsageError: they differ; says which.
    """
    expected = hybrid.state_dict()
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        what = f"lacks '{missing[0]}'" if missing else f"has unknown '{unknown[0]}'"
        raise UsageError(f"{where}/{WEIGHTS} {what}: it does not belong to its {CONFIG}")
    for name, shape in found.items():
        if list(shape) != list(expected[name].shape):
            raise UsageError(
                f"{where}/{WEIGHTS}: '{name}' is {list(shape)}, {CONFIG} needs {list(expected[name].shape)}"
            )


def load_state(hybrid: Hybrid, weights: bytes, where: str) -> None:
    """Loads weights strictly: the same names, shapes and kinds of numbers.

    Raises:
        UsageError: the file is damaged, or these differ; says which.
    """
    from safetensors.torch import load as load_tensors

    check_shapes(hybrid, shapes(weights, where), where)
    try:
        state = load_tensors(weights)
    except (SafetensorError, ValueError) as error:
        raise UsageError(f"{where}/{WEIGHTS} is damaged ({error}): copy the artifact again") from None
    for name, own in hybrid.state_dict().items():
        if own.is_floating_point() != state[name].is_floating_point():
            kind = str(state[name].dtype).removeprefix("torch.")
            raise UsageError(
                f"{where}/{WEIGHTS}: '{name}' is of {kind}, which no net learns: it is no artifact of ours"
            )
    hybrid.load_state_dict(state)


def pack_state(hybrid: Hybrid) -> bytes:
    """All weights and buffers as safetensors."""
    from safetensors.torch import save as save_tensors

    return save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in hybrid.state_dict().items()})


def check_size(build: Callable[[], Hybrid], found: Mapping[str, Sequence[int]], where: str) -> None:
    """Builds the net without memory first: a config.json that lies about its sizes allocates nothing.

    Raises:
        UsageError: it does not belong to its weights.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    from hybrid_models.layers.sketch import sketched

    built, most = 0, 4 * len(found) + 1000

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal built
        built += 1
        if built > most:
            raise UsageError(f"it has more than {most} parameters")

    counting = register_module_parameter_registration_hook(count)
    try:
        with sketched():
            sketch = build()
    except UsageError as error:
        raise UsageError(f"{where}/{CONFIG}: {error}") from None
    except (RuntimeError, TypeError, OverflowError) as error:
        raise UsageError(f"{where}/{CONFIG}: no net is that large: {str(error).splitlines()[0]}") from None
    finally:
        counting.remove()
    check_shapes(sketch, found, where)


def read_tensors(uri: str) -> dict[str, Tensor]:
    """A safetensors file by URI, such as pretrained weights.

    Raises:
        UsageError: it is not there or damaged.
    """
    from safetensors.torch import load as load_tensors

    try:
        return load_tensors(read_bounded(storage.absolute(uri), MAX_WEIGHTS))
    except FileNotFoundError:
        raise UsageError(f"no weights at {uri}: check the address") from None
    except SafetensorError as error:
        raise UsageError(f"{uri} is not a whole safetensors file: {error}") from None


def read_bounded(uri: str, limit: int) -> bytes:
    """The whole object, unless it is larger than any that an artifact has."""
    size = storage.info(uri).size
    if storage.is_local(uri) and not Path(storage.absolute(uri)).is_file():
        raise UsageError(f"{uri} is no file: it is no part of a trained model")  # a device or pipe has no end
    if size > limit:
        raise UsageError(f"{uri} has {size:,} bytes, more than {limit:,}: it is no part of a trained model")
    return storage.read_bytes(uri)
