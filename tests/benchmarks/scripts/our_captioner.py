"""This project's captioner in the hands of other people's programs, which read, batch and write themselves: what the
`captioning_*` scripts share."""

from __future__ import annotations

import numpy as np
import torch

from hybrid_models.frames import frames_of
from hybrid_models.inputs import Inputs, Sample
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.reading.media.decode import decode_media
from tests.benchmarks.figures import device


class Photographs:
    """Photographs → samples, without the weights: it travels to whoever decodes."""

    def __init__(self, model: str) -> None:
        artifact = artifacts.read(model)
        self._preprocess = artifact.interface.preprocess(artifact.config, artifact.assets)

    def of_bytes(self, photograph: bytes) -> Sample:
        """Of a JPEG, decoded as a night decodes it."""
        frames, times = decode_media(photograph, "jpg", self._preprocess.visual)
        return self._preprocess(Inputs(frames, {}, times), False)

    def of_pixels(self, photograph: np.ndarray) -> Sample:
        """Of uint8 [H,W,3], which the program has decoded itself."""
        assert self._preprocess.visual is not None
        return self._preprocess(Inputs(frames_of(photograph, self._preprocess.visual), {}), False)


class Captioner:
    """Samples → captions, as many at once as it is given, by so many threads, or by a GPU where there is one."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.session = Inference.of(artifacts.read(model)).load(device().type)

    def __call__(self, samples: list[Sample]) -> list[str]:
        """Collates and predicts."""
        return [row["caption"] for row in self.session.predict(samples)]
