import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hybrid_models.errors import UsageError
from pipelines.models import artifacts
from pipelines.models.tracking import Tracker, _tracking
from tests import tiny

TEXTS = tiny.sentences(5, seed=8)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow with a model of each kind; its URI."""
    folder = tmp_path_factory.mktemp("pyfunc")
    uri = f"sqlite:///{folder}/mlflow.db"
    for write in (tiny.write_translator, tiny.write_captioner, tiny.write_nowcaster):
        tracker = Tracker(uri)
        tracker.start("train", {}, {})
        artifact = artifacts.read(write(str(folder / write.__name__)))
        assert tracker.register(artifact.hybrid_class.name, artifact.files) == "1"
    return uri


@pytest.fixture
def load(registered: str) -> Iterator[Callable[[str], Any]]:
    """MLflow's loader, as a notebook would call it."""
    with _tracking(registered):
        yield mlflow.pyfunc.load_model


def test_a_registered_translator_predicts_from_a_data_frame(load: Callable[[str], Any]) -> None:
    model = load("models:/translator/1")
    rows = model.predict(pd.DataFrame({"text": [*TEXTS[:3], "x" * 500, *TEXTS[3:]]}))
    expected = tiny.translator().translate(TEXTS, beam_size=1, max_length=12)
    assert rows["status"].tolist() == ["ok", "ok", "ok", "error", "ok", "ok"]
    assert rows["translation"][rows["status"] == "ok"].tolist() == expected
    assert rows["source"][0] == TEXTS[0]
    assert "200" in rows["error"][3]
    assert list(rows.columns) == [
        "source", "translation", "score", "source_tokens", "target_tokens", "status", "error",
    ]  # fmt: skip

    wide = model.predict(pd.DataFrame({"en": TEXTS}), params={"beam_size": 3, "max_length": 5})
    assert wide["translation"].tolist() == tiny.translator().translate(TEXTS, beam_size=3, max_length=5)
    with pytest.raises(UsageError, match="beam_size is 0: it must be at least 1"):
        model.predict(pd.DataFrame({"en": TEXTS}), params={"beam_size": 0})


def test_a_registered_captioner_predicts_from_image_bytes(load: Callable[[str], Any]) -> None:
    model = load("models:/captioner@challenger")
    photos = [tiny.jpeg(seed) for seed in range(3)]
    rows = model.predict(pd.DataFrame({"media": [photos[0], b"no image", photos[1], photos[2]]}))
    assert rows["status"].tolist() == ["ok", "error", "ok", "ok"]
    images = [Image.open(io.BytesIO(photo)) for photo in photos]
    expected = tiny.captioner().caption(images, beam_size=1, max_length=8)
    assert rows["caption"][rows["status"] == "ok"].tolist() == expected
    assert rows["frames"][rows["status"] == "ok"].tolist() == [1, 1, 1]


def test_a_registered_nowcaster_predicts_from_arrays(load: Callable[[str], Any]) -> None:
    model = load("models:/nowcaster/1")
    past = np.random.default_rng(0).gamma(1.0, 2.0, (3, 32, 32)).astype(np.float16)
    frame = pd.DataFrame({"media": [past, past[:2]], "step_minutes": 5, "issue_time": pd.Timestamp("2026-01-31 12:00")})
    rows = model.predict(frame)
    assert rows["status"].tolist() == ["ok", "error"]
    assert "2 frames where 3 are needed" in rows["error"][1]
    assert rows["lead_minutes"][0].tolist() == [5.0, 10.0]
    assert rows["issue_time"][0] == pd.Timestamp("2026-01-31 12:00", tz="UTC")
    frames = np.frombuffer(rows["frames"][0], "<f2").reshape(rows["frames_shape"][0])
    assert frames == pytest.approx(tiny.nowcaster().nowcast(past, 2, 5), rel=1e-2, abs=1e-2)


def test_other_columns_are_the_rows_fields() -> None:
    from pipelines.models.pyfunc_model import raw_row

    row = raw_row(3, {"media": None, "text": "grün", "when": pd.Timestamp("2026-01-31")})
    assert (row["index"], row["sample_id"], row["media"], row["media_type"]) == (3, "3", None, None)
    assert json.loads(row["fields"]) == {"text": "grün", "when": "2026-01-31 00:00:00"}
    assert raw_row(0, {"media": tiny.jpeg(0)})["media_type"] == "jpg"
