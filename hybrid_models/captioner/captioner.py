"""The captioner: a CNN looks at a photograph or clip, an RNN says what it sees.

"Show and tell" (Vinyals et al. 2015) without attention, "Show, attend and tell" (Xu et al. 2015, soft attention) with
it, where the state that has read the last word looks (see `AttentionDecoder`). With an RNN over a clip's frames
(`TemporalEncoder`) it looks at its T states, too, beside the S cells of the grid averaged over time: T + S places
instead of T · S. A photograph is a clip of one frame. A frozen CNN is run once per sample (`featurize`); then only the
RNNs are trained: to write the references, and then for captions that score (`self_critical`).
"""

# ruff: noqa: N806 - shape suffixes, see contract.py

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from hybrid_models import shapes
from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.captioner.decoding import CaptionerDecoding
from hybrid_models.captioner.interface import CaptionerInterface
from hybrid_models.captioner.preprocess import TOKENIZER, caption_tokenizer
from hybrid_models.captioner.rewards import DRAWN, Spelling, advantages, spelling_of
from hybrid_models.contract import Batch, Loss, autocast, module_device, to_device
from hybrid_models.explanations import Explanation, Gaze
from hybrid_models.frames import frames_of
from hybrid_models.inputs import Inputs, Sample, Visual
from hybrid_models.interface import DecodingConfig, HybridConfig
from hybrid_models.layers.image_encoder import VisualHybrid, pool_time
from hybrid_models.layers.recurrent import STATES, initial_state
from hybrid_models.layers.temporal import TemporalEncoder, clips_of, frame_places, pad_clips, pool_places, real_frames
from hybrid_models.layers.word_decoder import word_decoder
from hybrid_models.scores.texts import Tally, caption_bleu4, caption_tokens, cider_d
from hybrid_models.search.beam import Hypothesis, State, inference
from hybrid_models.search.sampling import sample_words
from hybrid_models.symbols import BOS, EOS, PAD
from hybrid_models.text import Tokenizer, rows_of_words, unpack_json


# ---- the hybrid ----------------------------------------------------------------------------------------------------
class Captioner(CaptionerInterface, VisualHybrid):
    """Image or clip in, sentence out. See `Hybrid` for the methods' contract.

    Raises:
        UsageError: the encoder cannot be built, or the assets have no (valid) tokenizer.
    """

    def __init__(self, config: CaptionerConfig, assets: Mapping[str, str]) -> None:
        super().__init__(config, assets)
        self.config: CaptionerConfig = config
        self._tokenizer = caption_tokenizer(assets)
        size = config.hidden_size
        self.temporal = (
            None if config.temporal == "mean" else TemporalEncoder(self.encoder.channels, size, config.temporal)
        )
        ordered = self.temporal is not None
        self.frame_keys = nn.Linear(size, self.encoder.channels) if ordered and config.attention else None
        self.bridge = nn.Linear(self.encoder.channels + ordered * size, STATES[config.cell] * size)
        self.decoder = word_decoder(
            len(self._tokenizer),
            config.embedding_size,
            config.hidden_size,
            self.encoder.channels,
            config.attention_size if config.attention else None,
            config.cell,
            config.dropout,
            config.tie_embeddings,
        )
        self._spelling: Spelling | None = None  # while captions are rewarded

    @classmethod
    def learn_assets(cls, config: HybridConfig, texts: Iterable[str]) -> dict[str, str]:
        return {TOKENIZER: Tokenizer.train(texts, cast(CaptionerConfig, config).vocab_size).to_json()}

    def featurize(self, samples: Sequence[Sample], batch: Batch | None = None) -> list[Sample]:
        """With a frozen encoder, `frames` become what `_look` sees, float16: `features` [S,C], and `course` [T,4C].

        With `mirror`, samples with captions also get that of their mirror images, as `mirrored_features` ….
        """
        if not self.config.freeze_encoder:
            return list(samples)
        if batch is None:
            batch = to_device(self.collate(samples), module_device(self))
        views = {"": batch}
        if self.config.mirror and all("captions" in sample for sample in samples):
            views[MIRRORED] = {**batch, "frames": batch["frames"].flip(3)}
        featurized: list[Sample] = [dict(sample) for sample in samples]
        for prefix, view in views.items():
            with inference(self):
                seen = {name: tensor.half().cpu().numpy() for name, tensor in self._look(view).items()}
            for i, sample in enumerate(featurized):
                sample[f"{prefix}features"] = seen["features"][i]
                if "course" in seen:
                    sample[f"{prefix}course"] = seen["course"][i, : int(sample["frame_count"])]
        return [{name: array for name, array in sample.items() if name != "frames"} for sample in featurized]

    def collate(self, samples: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        """`features` float16 [B,S,C] (and `course` [B,T,4C]), or `frames` uint8 [B,T,H,W,3], padded at the end, and
        `shown` int64 [F], the places of real frames in [B·T]; `frame_count` [B], and `counts`, a list of the same;
        `captions` int64 [B,R,L], start and end symbols included, where captions that a sample lacks are all padding,
        `written` int64 [M], the places of tokens in [B·R·(L-1)], see `WordDecoder.written`.
        With `mirror`, `rng` chooses the samples that are shown as their mirror images."""
        counts = [int(sample["frame_count"]) for sample in samples]
        batch: Batch = {"frame_count": torch.tensor(counts), "counts": counts}
        if rng is not None and self.config.mirror:
            samples = [_mirrored(sample) if rng.integers(2) else sample for sample in samples]
        if all("features" in sample for sample in samples):
            batch["features"] = torch.from_numpy(np.stack([sample["features"] for sample in samples]))
        for name in ("course", "frames"):
            if all(name in sample for sample in samples):
                batch[name] = torch.from_numpy(pad_clips([sample[name] for sample in samples]))
        if "frames" in batch:
            batch["shown"] = torch.from_numpy(frame_places(counts))
        if all("captions" in sample for sample in samples):
            most, width = map(int, np.max([sample["captions"].shape for sample in samples], axis=0))
            width = shapes.width_on(module_device(self), width)
            captions = np.zeros((len(samples), most, width), dtype=np.int64)
            for row, sample in zip(captions, samples, strict=True):
                row[: sample["captions"].shape[0], : sample["captions"].shape[1]] = sample["captions"]
            batch["captions"] = torch.from_numpy(captions)
            batch["written"] = self.decoder.written(captions.reshape(-1, width))
        return batch

    def forward(self, batch: Batch) -> Loss:
        """Negative log likelihood of all captions' tokens, end symbols included (smoothed in training mode); in the
        last `reward_share` of a training that of captions drawn from the model, weighted by their advantage."""
        if self.training and self._spelling is not None:
            return self._reward_loss(batch, self._spelling)
        with autocast(module_device(self)):
            state, memory = self._start(batch)
            captions = batch["captions"]
            state = {name: tensor.repeat_interleave(captions.shape[1], dim=0) for name, tensor in state.items()}
            smoothing = self.config.label_smoothing if self.training else 0.0
            return self.decoder.loss(captions.flatten(0, 1), batch["written"], state, memory, smoothing)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        rewarded = epoch >= max(1, epochs - round(self.config.reward_share * epochs))
        self._spelling = spelling_of(self._tokenizer.spelling(), module_device(self)) if rewarded else None

    def _reward_loss(self, batch: Batch, spelling: Spelling) -> Loss:
        """Negative log likelihood of drawn captions, each weighted by its advantage: see `self_critical`."""
        captions_BRL = batch["captions"]
        most, options = captions_BRL.shape[2], CaptionerDecoding().search_options()
        with autocast(module_device(self)):
            state, memory = self._start(batch)
            memory = self.decoder.share(memory, len(captions_BRL) * DRAWN * most)
        with inference(self), autocast(module_device(self)):
            # an encoder that is trained sees otherwise in evaluation mode
            start = (state, memory) if "features" in batch else self._start(batch)
            drawn_NT = sample_words(self.decoder.cast_once().step, *start, most, options, DRAWN)
        weights_BK = advantages(drawn_NT.unflatten(0, (-1, DRAWN)), captions_BRL, spelling)
        with autocast(module_device(self)):
            state = {name: tensor.repeat_interleave(DRAWN, dim=0) for name, tensor in state.items()}
            targets_NT = F.pad(drawn_NT, (1, 0), value=BOS)
            written_M = shapes.places(drawn_NT != PAD)
            return self.decoder.loss(targets_NT, written_M, state, memory, 0.0, weights_BK.flatten())

    def predict(self, batch: Batch, decoding: DecodingConfig) -> list[dict[str, Any]]:
        # in half precision, as the encoder sees
        with inference(self), autocast(module_device(self)):
            found = self._search(*self._start(batch), len(batch["counts"]), cast(CaptionerDecoding, decoding))
        return [
            {
                "caption": self._tokenizer.decode(best.tokens),
                "score": best.score,
                "caption_tokens": len(best.tokens),
                "frames": count,
            }
            for best, count in zip(found, batch["counts"], strict=True)
        ]

    def _search(self, state: State, memory: State, count: int, decoding: CaptionerDecoding) -> list[Hypothesis]:
        return self.decoder.search(state, memory, [decoding.max_length] * count, decoding.search_options())

    def explain(self, samples: Sequence[Sample], decoding: DecodingConfig) -> list[Explanation]:
        batch = to_device(self.collate(samples), module_device(self))
        with inference(self), autocast(module_device(self)):
            state, memory = self._start(batch)
            found = self._search(state, memory, len(samples), cast(CaptionerDecoding, decoding))
            looks = self.decoder.attend([best.tokens for best in found], state, memory)
        return [
            self._gaze(sample, best, None if looks is None else looks[i])
            for i, (sample, best) in enumerate(zip(samples, found, strict=True))
        ]

    def _gaze(self, sample: Sample, best: Hypothesis, looks: np.ndarray | None) -> Gaze:
        words, starts = self._tokenizer.words([*best.tokens, EOS])
        grid, along = (None, None) if looks is None else self._places(rows_of_words(looks, starts), sample)
        said = self._tokenizer.decode(best.tokens)
        return Gaze(sample["frames"], said, words[:-1], grid, along, sample.get("times"))

    def _places(self, looks: np.ndarray, sample: Sample) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Weights [words,places] of memory's places as those of the grid [words,h,w] and of the frames [words,T], which
        tell nothing of one frame."""
        side = math.isqrt(self.encoder.cells)
        grid = looks[:, -(side**2) :].reshape(-1, side, side)
        count = len(sample["frames"])
        return grid, None if self.frame_keys is None or count == 1 else looks[:, :count]

    def caption(
        self, images: Sequence[Any], batch_size: int = 32, frame_rate: float | None = None, **decoding: Any
    ) -> list[str]:
        """Captions images and clips of any size, in order.

        Args:
            images: PIL images, uint8 arrays [H,W,3], or clips as uint8 arrays [T,H,W,3].
            batch_size: samples captioned at a time.
            frame_rate: frames a second of clips, by which `--model.sampling fps` chooses; see `frames_of`.
            decoding: options of `CaptionerDecoding` that differ from the model's own, such as `beam_size=1`.

        Raises:
            BadSample: something is none of these.
            UsageError: a frame rate that is none.
        """
        options = replace(self.decoding, **decoding)
        preprocess = self.preprocess(self.config, self.assets)
        visual = cast(Visual, preprocess.visual)
        captions: list[str] = []
        for start in range(0, len(images), batch_size):
            media = [frames_of(image, visual, frame_rate) for image in images[start : start + batch_size]]
            batch = self.collate([preprocess(Inputs(frames, {}), with_target=False) for frames in media])
            captions += [row["caption"] for row in self.predict(to_device(batch, module_device(self)), options)]
        return captions

    def record(self, sample: Sample, output: Mapping[str, Any]) -> dict[str, Any]:
        """`hypothesis` and `references`, the raw captions."""
        return {"hypothesis": output["caption"], "references": unpack_json(sample["references"])}

    @classmethod
    def summarise(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """CIDEr-D and BLEU-4; the baseline says the most frequent of all references (their plain form) every time."""
        references = [record["references"] for record in records]
        plain = Counter(" ".join(caption_tokens(text)) for texts in references for text in texts)
        usual = max(plain, key=lambda text: (plain[text], text))  # the text breaks ties, so order does not matter
        hypotheses = [record["hypothesis"] for record in records]
        baseline = {"name": "most frequent caption", **_scores([usual] * len(records), references)}
        details = {"samples": len(records), "different_captions": len(set(hypotheses)), "baseline_caption": usual}
        return {"metrics": _scores(hypotheses, references), "baseline": baseline, "details": details}

    @classmethod
    def tallies(cls, records: Sequence[Mapping[str, Any]]) -> dict[str, Tally]:
        return _tallies([record["hypothesis"] for record in records], [record["references"] for record in records])

    # ---- the net's two halves ----
    def _look(self, batch: Batch) -> dict[str, Tensor]:
        """What the encoder sees, float32: `features` [B,S,C], averaged over each sample's frames (S = 1 without
        attention); for an RNN over frames `course` [B,T,4C], what is where in each of them."""
        if "features" in batch:
            return {name: batch[name].float() for name in ("features", "course") if name in batch}
        frames, shown = batch["frames"], batch["shown"]
        features_FSC = self.encoder(frames.flatten(0, 1)[shown])
        shape = frames.shape[0], frames.shape[1]
        course = {} if self.temporal is None else {"course": clips_of(pool_places(features_FSC), shown, shape)}
        if not self.config.attention:
            features_FSC = features_FSC.mean(dim=1, keepdim=True)
        return {"features": pool_time(features_FSC, shown // shape[1], batch["frame_count"]), **course}

    def _start(self, batch: Batch) -> tuple[State, State]:
        """The decoder's initial state [B,D], from the mean feature vector and an RNN's last state, and its memory: the
        RNN's states, if there is one, and the grid's cells."""
        seen = self._look(batch)
        summary, keys_BSC = seen["features"].mean(dim=1), seen["features"]
        mask_BS = torch.ones(keys_BSC.shape[:2], dtype=torch.bool, device=keys_BSC.device)
        if self.temporal is not None:
            states_BTD, last_BD = self.temporal(seen["course"], batch["frame_count"])
            summary = torch.cat([summary, last_BD.float()], dim=1)
            if self.frame_keys is not None:
                keys_BSC = torch.cat([self.frame_keys(states_BTD).float(), keys_BSC], dim=1)
                mask_BS = torch.cat([real_frames(batch["frame_count"], states_BTD.shape[1]), mask_BS], dim=1)
        state = initial_state(summary, self.config.cell, self.bridge)
        return state, self.decoder.prepare({"keys": keys_BSC, "mask": mask_BS})


MIRRORED = "mirrored_"


def _mirrored(sample: Sample) -> Sample:
    """The sample of the mirror image, left and right exchanged."""
    if "features" in sample:
        return sample | {
            name.removeprefix(MIRRORED): array for name, array in sample.items() if name.startswith(MIRRORED)
        }
    return {**sample, "frames": sample["frames"][:, :, ::-1]}


def _tallies(hypotheses: list[str], references: list[list[str]]) -> dict[str, Tally]:
    return {
        "cider_d": cider_d(hypotheses, references),
        "bleu4": caption_bleu4(hypotheses, references),
    }


def _scores(hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
    return {name: tally.total for name, tally in _tallies(hypotheses, references).items()}
