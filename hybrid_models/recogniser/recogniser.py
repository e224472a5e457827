"""The recogniser: a CNN looks at a clip's frames, an RNN reads them in order, its last state tells the action.

The recurrent classifier of "Long-term recurrent convolutional networks" (Donahue et al. 2015), many to one.
"""

# ruff: noqa: N806 - shape suffixes, see contract.py

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from hybrid_models.contract import Batch, Loss, autocast, module_device, to_device
from hybrid_models.explanations import Explanation, Gaze
from hybrid_models.frames import frames_of
from hybrid_models.inputs import Inputs, Sample, Visual
from hybrid_models.interface import DecodingConfig, HybridConfig
from hybrid_models.layers.image_encoder import VisualHybrid
from hybrid_models.layers.temporal import TemporalEncoder, clips_of, frame_places, pad_clips, pool_places
from hybrid_models.recogniser.config import RecogniserConfig
from hybrid_models.recogniser.decoding import RecogniserDecoding
from hybrid_models.recogniser.interface import RecogniserInterface
from hybrid_models.recogniser.preprocess import (
    LABELS,
    learn_labels,
    read_labels,
)
from hybrid_models.scores import labels as scores
from hybrid_models.scores.texts import Tally


class Recogniser(RecogniserInterface, VisualHybrid):
    """Clip in, label out. See `Hybrid` for the methods' contract.

    Raises:
        UsageError: the encoder cannot be built, or the assets have no labels.
    """

    def __init__(self, config: RecogniserConfig, assets: Mapping[str, str]) -> None:
        super().__init__(config, assets)
        self.config: RecogniserConfig = config
        self.labels = read_labels(assets)
        self.temporal = TemporalEncoder(self.encoder.channels, config.hidden_size, config.cell)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.hidden_size, len(self.labels))

    @classmethod
    def learn_assets(cls, config: HybridConfig, texts: Iterable[str]) -> dict[str, str]:
        return {LABELS: learn_labels(texts)}

    def featurize(self, samples: Sequence[Sample], batch: Batch | None = None) -> list[Sample]:
        """With a frozen encoder, `frames` become `course`, float16 [T,4C]: what is where in each."""
        if not self.config.freeze_encoder:
            return list(samples)
        if batch is None:
            batch = to_device(self.collate(samples), module_device(self))
        with torch.inference_mode():
            course = self._look(batch).half().cpu().numpy()
        return [
            {"course": course[i, : int(sample["frame_count"])]}
            | {name: value for name, value in sample.items() if name != "frames"}
            for i, sample in enumerate(samples)
        ]

    def collate(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        """`course` float16 [B,T,4C] or `frames` uint8 [B,T,H,W,3], padded at the end, and `shown` int64
        [F], the places of real frames in [B·T]; `frame_count`, `label` [B]; a list of the first, `counts`."""
        counts = [int(sample["frame_count"]) for sample in samples]
        batch: Batch = {"frame_count": torch.tensor(counts), "counts": counts}
        for name in ("course", "frames"):
            if all(name in sample for sample in samples):
                batch[name] = torch.from_numpy(pad_clips([sample[name] for sample in samples]))
        if "frames" in batch:
            batch["shown"] = torch.from_numpy(frame_places(counts))
        if all("label" in sample for sample in samples):
            batch["label"] = torch.tensor([int(sample["label"]) for sample in samples])
        return batch

    def forward(self, batch: Batch) -> Loss:
        """Cross entropy of the labels, smoothed in training mode."""
        smoothing = self.config.label_smoothing if self.training else 0.0
        total = F.cross_entropy(self._logits(batch), batch["label"], label_smoothing=smoothing, reduction="sum")
        return Loss(total, batch["label"].new_full((), len(batch["label"])))

    def predict(self, batch: Batch, decoding: DecodingConfig) -> list[dict[str, Any]]:
        top = min(cast(RecogniserDecoding, decoding).top, len(self.labels))
        with torch.inference_mode():
            shares, numbers = self._logits(batch).softmax(dim=1).topk(top, dim=1)
        rows = []
        for values, chosen, count in zip(shares.tolist(), numbers.tolist(), batch["counts"], strict=True):
            told = [{"label": self.labels[n], "score": share} for n, share in zip(chosen, values, strict=True)]
            rows.append({**told[0], "scores": told, "frames": count})
        return rows

    def explain(self, samples: Sequence[Sample], decoding: DecodingConfig) -> list[Explanation]:
        found = self.predict(to_device(self.collate(samples), module_device(self)), decoding)
        return [
            Gaze(
                sample["frames"],
                f"{row['label']} ({row['score']:.2f})",
                [row["label"]],
                None,
                times=sample.get("times"),
            )
            for sample, row in zip(samples, found, strict=True)
        ]  # fmt: skip

    def recognise(self, clips: Sequence[Any], batch_size: int = 32, frame_rate: float | None = None) -> list[str]:
        """The label of each clip of any size, in order.

        Args:
            clips: uint8 arrays [T,H,W,3], or PIL images, which are clips of one frame.
            batch_size: clips at a time.
            frame_rate: frames a second, by which `--model.sampling fps` chooses; see `frames_of`.

        Raises:
            BadSample: something is none of these.
            UsageError: a frame rate that is none.
        """
        preprocess = self.preprocess(self.config, self.assets)
        visual = cast(Visual, preprocess.visual)
        found: list[str] = []
        for start in range(0, len(clips), batch_size):
            media = [frames_of(clip, visual, frame_rate) for clip in clips[start : start + batch_size]]
            batch = self.collate([preprocess(Inputs(frames, {}), with_target=False) for frames in media])
            found += [row["label"] for row in self.predict(to_device(batch, module_device(self)), self.decoding)]
        return found

    # ---- judgement ----
    def record(self, sample: Sample, output: Mapping[str, Any]) -> dict[str, Any]:
        """`label`, what was said, and `true`."""
        return {"label": output["label"], "true": self.labels[int(sample["label"])]}

    @classmethod
    def summarise(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Accuracy and macro F1; the baseline says the most frequent true label every time."""
        true, said = ([record[name] for record in records] for name in ("true", "label"))
        usual = min(Counter(true).items(), key=lambda pair: (-pair[1], pair[0]))[0]
        baseline = {"name": "most frequent label", **_scores(true, [usual] * len(true))}
        details = {"samples": len(records), "baseline_label": usual, "confusion": scores.confusion(true, said)}
        return {"metrics": _scores(true, said), "baseline": baseline, "details": details}

    @classmethod
    def tallies(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Tally]:
        true, said = ([record[name] for record in records] for name in ("true", "label"))
        return {"accuracy": scores.accuracy(true, said), "macro_f1": scores.macro_f1(true, said)}

    # ---- the net's two halves ----
    def _look(self, batch: Batch) -> Tensor:
        """What is where in each frame, float32 [B,T,4C], padded at the end."""
        if "course" in batch:
            return cast(Tensor, batch["course"]).float()
        frames, shown = batch["frames"], batch["shown"]
        seen_FK = pool_places(self.encoder(frames.flatten(0, 1)[shown]))
        return clips_of(seen_FK, shown, (frames.shape[0], frames.shape[1]))

    def _logits(self, batch: Batch) -> Tensor:
        """float32 [B, labels]."""
        with autocast(module_device(self)):
            _, last_BD = self.temporal(self._look(batch), batch["frame_count"])
            logits: Tensor = self.output(self.dropout(last_BD))
        return logits.float()


def _scores(true: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    return {"accuracy": scores.accuracy(true, said).total, "macro_f1": scores.macro_f1(true, said).total}
