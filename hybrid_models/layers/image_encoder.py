"""The eye of hybrids: a timm CNN from pixels to a grid of feature vectors, and the mean over a clip's frames."""

# ruff: noqa: N806 - shape suffixes, see contract.py

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self, cast

import timm  # not where an encoder is built: older versions of torch load their compiler then, and not while sketched
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hybrid_models.contract import Hybrid, autocast
from hybrid_models.errors import UsageError
from hybrid_models.layers.sketch import sketched
from hybrid_models.visual import VisualConfig

FRAMES_AT_A_TIME = 64
"""Frames that go through the CNN together when it is not trained: bounds memory for batches of clips."""
FRAMES_A_THREAD = 8
"""The same on CPUs, for each thread: more take no less time, and memory that is paged in anew for each layer."""
SAME = 1e-3
"""How far what a CNN with folded batch norm makes of noise may be from what it makes without, relative to it."""


class Encoder(nn.Module):
    """A timm CNN without its classifier: uint8 frames → a grid of feature vectors. Never fetches weights by itself.

    Raises:
        UsageError: timm has no such model of its own, or it is no convolutional net for this image size, whose grid is
            `[F, channels, height, width]`.
    """

    cnn: Any  # timm's nets have more than nn.Module declares
    mean: Tensor
    std: Tensor
    _folded: tuple[list[tuple[Tensor, int]], nn.Module] | None = None
    """Of which weights, each in which state, and what became of them; no module of this one, and never saved."""
    _learns = False

    def __init__(self, model: str, image_size: int) -> None:
        super().__init__()
        self.name, self.image_size = model, image_size
        if not timm.is_model(model):  # `hf-hub:…` would be fetched, `local-dir:…` be read
            raise UsageError(f"encoder '{model}' cannot be built: it is none of timm's own models")
        try:
            with sketched(), torch.inference_mode():
                probe: Any = timm.create_model(model, pretrained=False, num_classes=0).eval()
                grid = probe.forward_features(torch.zeros(1, 3, image_size, image_size))
            self.cnn = timm.create_model(model, pretrained=False, num_classes=0)
        except Exception as error:  # whatever timm raises, the name or the size is wrong
            raise UsageError(f"encoder '{model}' cannot be built for {image_size} px images: {error}") from error
        if grid.dim() != 4 or (grid.shape[1] != probe.num_features and grid.shape[3] == probe.num_features):
            raise UsageError(f"encoder '{model}' gives no spatial grid: choose a convolutional net of timm")
        self.cnn.train().to(memory_format=torch.channels_last)
        self.channels: int = grid.shape[1]
        self.cells: int = grid.shape[2] * grid.shape[3]
        for name in ("mean", "std"):
            value = torch.tensor(self.cnn.pretrained_cfg[name]).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def learn(self) -> None:
        """Lets all weights that make the grid learn, once. Those of timm's own head do not, which some nets keep
        without a classifier: DDP waits for the gradients of all that do."""
        if self._learns:
            return
        with sketched(), torch.inference_mode(False), torch.enable_grad():
            net: Any = timm.create_model(self.name, pretrained=False, num_classes=0).eval()
            grid = net.forward_features(torch.zeros(1, 3, self.image_size, self.image_size))
            names, weights = zip(*net.named_parameters(), strict=True)
            slopes = torch.autograd.grad(grid.sum(), weights, allow_unused=True)
        for name, slope in zip(names, slopes, strict=True):
            self.cnn.get_parameter(name).requires_grad_(slope is not None)
        self._learns = True

    def _fetch(self) -> Mapping[str, Tensor]:
        try:
            state: Mapping[str, Tensor] = timm.create_model(self.name, pretrained=True, num_classes=0).state_dict()
            return state
        except Exception as error:  # network, hub and timm errors alike
            raise UsageError(
                f"weights of '{self.name}' could not be fetched ({error}): "
                "set encoder_weights to the URI of a safetensors file"
            ) from error

    def forward(self, frames: Tensor) -> Tensor:
        """frames uint8 [F,H,W,3] → float32 [F,S,C], S = grid cells row by row."""
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.cnn.parameters())
        if self.training or learns:
            return self._see(self.cnn, frames)
        at_a_time = FRAMES_AT_A_TIME
        if frames.device.type == "cpu":
            at_a_time = min(at_a_time, FRAMES_A_THREAD * torch.get_num_threads())
        cnn = self._quick()
        return torch.cat([self._see(cnn, part) for part in frames.split(at_a_time)])

    def _see(self, cnn: Any, frames: Tensor) -> Tensor:
        precise = torch.promote_types(torch.float32, self.mean.dtype)
        pixels = frames.permute(0, 3, 1, 2).to(precise)  # [F,3,H,W], already in channels-last order
        pixels.sub_(255 * self.mean).div_(255 * self.std)
        with autocast(frames.device):
            grid_FCHW = cnn.forward_features(pixels)
        cells_FSC: Tensor = grid_FCHW.flatten(2).transpose(1, 2).float()
        return cells_FSC

    def _quick(self) -> nn.Module:
        """The CNN for evaluation alone: its batch norm is folded into the convolutions before it, where that gives the
        same. On CPUs it takes a sixth less time, or a third less where memory is paged in anew.

        One that learns stays as it is: optimizers change weights without a trace. Others are loaded, which is seen.
        """
        weights = [*self.cnn.parameters(), *self.cnn.buffers()]
        precise = {weight.dtype for weight in self.cnn.parameters()} == {torch.float32}
        changing = self.cnn.training or any(weight.requires_grad or weight.is_inference() for weight in weights)
        if changing or not precise:
            return cast(nn.Module, self.cnn)
        if self._folded is None or not _unchanged(weights, self._folded[0]):
            with torch.inference_mode(False), torch.no_grad():  # what is held keeps its place in memory
                self._folded = [(weight.detach(), weight._version) for weight in weights], _folded(self.cnn)
        return self._folded[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folded": None}

    def load(self, weights: Mapping[str, Tensor] | None) -> None:
        """Loads the whole backbone; a classifier's weights are dropped. None are fetched from timm's hub.

        Raises:
            UsageError: keys are missing or unknown, or shapes differ; or the hub cannot be reached.
        """
        if weights is None:
            weights = self._fetch()
        classifier = self.cnn.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
        wanted = self.cnn.state_dict()
        given = {key: value for key, value in weights.items() if not (heads and key.startswith(heads))}
        counters = {key for key in wanted if key.endswith("num_batches_tracked")}  # not in every file, not used
        wrong = [f"{key} is missing" for key in wanted if key not in given and key not in counters]
        wrong += [f"{key} is unknown" for key in given if key not in wanted]
        wrong += [
            f"{key} is {list(value.shape)}, not {list(wanted[key].shape)}"
            for key, value in given.items()
            if key in wanted and value.shape != wanted[key].shape
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            model = self.cnn.pretrained_cfg.get("architecture")
            raise UsageError(f"encoder weights do not fit '{model}': {'; '.join(wrong[:3])}{more}")
        self.cnn.load_state_dict({**wanted, **given})


def _unchanged(weights: Sequence[Tensor], before: Sequence[tuple[Tensor, int]]) -> bool:
    """Whether weights are those that they were, in the same place and state."""
    return len(weights) == len(before) and all(
        weight.data_ptr() == held.data_ptr() and weight._version == version
        for weight, (held, version) in zip(weights, before, strict=True)
    )


def _folded(cnn: Any) -> Any:
    """A copy whose convolutions do what the batch norm that follows each did, in evaluation mode; the CNN itself where
    such a copy sees something else, as it may in nets whose layers do not follow one another as they are declared."""
    quick = copy.deepcopy(cnn).eval()
    _fold(quick)
    size = cnn.pretrained_cfg["input_size"]
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).double()
    with torch.autocast(next(cnn.parameters()).device.type, enabled=False), torch.autocast("cpu", enabled=False):
        # on the CPU, and exactly: a GPU would round the two differently
        seen, quick_seen = (copy.deepcopy(net).cpu().double().forward_features(noise) for net in (cnn, quick))
    same = bool((quick_seen - seen).norm() <= SAME * seen.norm())
    return quick.to(memory_format=torch.channels_last) if same else cnn


def _fold(module: nn.Module) -> None:
    children = list(module.named_children())
    for (name, layer), (following, norm) in pairwise(children):
        if not (isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        if norm.running_mean is not None and norm.num_features == layer.out_channels:
            setattr(module, name, fuse_conv_bn_eval(layer, norm))
            setattr(module, following, getattr(norm, "act", nn.Identity()))  # timm's has its activation in it
    for _, child in module.named_children():
        _fold(child)


def pool_time(features: Tensor, clips: Tensor, counts: Tensor) -> Tensor:
    """Mean over each clip's frames: [F,S,C] of frames, each one's clip [F], how many each has [B] → [B,S,C]."""
    total_BSC = features.new_zeros(len(counts), *features.shape[1:]).index_add_(0, clips, features)
    return total_BSC / counts.view(-1, 1, 1)


class VisualHybrid(Hybrid):
    """A hybrid that sees through an `Encoder`, which may stay as it is."""

    def __init__(self, config: VisualConfig, assets: Mapping[str, str]) -> None:
        super().__init__(config, assets)
        self.encoder = Encoder(config.encoder, config.image_size)
        self._frozen, self._weights = config.freeze_encoder, config.encoder_weights
        if self._frozen:
            self.encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays in evaluation mode: its batch norm must not drift."""
        super().train(mode)
        if self._frozen:
            self.encoder.eval()
        elif mode:
            self.encoder.learn()
        return self

    def pretrained(self) -> dict[str, str]:
        return {} if self._weights == "none" else {"encoder": self._weights}

    def load_pretrained(self, part: str, weights: Mapping[str, Tensor] | None) -> None:
        if part != "encoder":
            super().load_pretrained(part, weights)
        self.encoder.load(weights)

    @property
    def has_frozen_features(self) -> bool:
        return self._frozen
