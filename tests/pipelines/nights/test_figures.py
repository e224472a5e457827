"""What a page shows of a night is how the night itself predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hybrid_models.explanations import Gaze
from pipelines import storage
from pipelines.nights import figures
from tests import tiny


@pytest.mark.parametrize("decoding", [{}, {"beam_size": 3, "max_length": 5}])
def test_the_nights_own_decoding_is_explained(tmp_path: Path, decoding: dict[str, int]) -> None:
    """Its options may be others than the model's own; they are kept with its files."""
    model, lake = tiny.write_translator(str(tmp_path / "model")), str(tmp_path / "tables")
    storage.write_bytes(str(tmp_path / "in/a.txt"), "\n".join(tiny.sentences(4, seed=9)).encode())
    tiny.write_night(lake, "2026-01-31", str(tmp_path / "in"), model, **decoding)
    shown, problem = figures.figures(lake, "translations", model, "2026-01-31", "", 4)
    assert (len(shown), problem) == (4, "")
    for figure in shown:
        words = [word for word, _ in figure.content["lines"]]
        assert len(words) == figure.row["target_tokens"] + 1, "and the end"
    if decoding:
        assert max(figure.row["target_tokens"] for figure in shown) <= 5


def test_a_page_reads_no_file_of_its_maker_that_a_tables_rows_name(s3: str, tmp_path: Path) -> None:
    """Whoever may write to the bucket could have it shown to all who may read there."""
    model = tiny.write_translator(str(tmp_path / "model"))
    storage.write_bytes(str(tmp_path / "secret.txt"), b"marked secret")
    tiny.write_night(f"{s3}/tables", "2026-01-31", str(tmp_path / "secret.txt"), model)
    shown, problem = figures.figures(f"{s3}/tables", "translations", model, "2026-01-31", "", 4)
    assert shown == []
    assert (
        problem
        == f"Nothing to look at: its rows are of another kind of store than {s3}/tables: a page reads none of them"
    )
    storage.write_bytes(f"{s3}/in/a.txt", b"ein Hund")
    tiny.write_night(f"{s3}/tables", "2026-02-01", f"{s3}/in", model)
    assert len(figures.figures(f"{s3}/tables", "translations", model, "2026-02-01", "", 4)[0]) == 1


@pytest.mark.parametrize("frames", [1, 3])
def test_a_captioner_of_frames_in_order_shows_where_it_looked(frames: int) -> None:
    """In which frame of a clip; in which part of a photograph."""
    shown = Gaze(
        frames=np.zeros((frames, 32, 32, 3), np.uint8),
        said="a dog",
        words=["a", "dog"],
        weights=np.full((2, 2, 2), 0.1, np.float32),
        frame_weights=np.full((2, frames), 0.2, np.float32) if frames > 1 else None,
    )
    kind, content = figures.element(shown, {})
    assert kind == "photograph"
    assert [word for word, _ in content["lines"]] == (["a", "dog"] if frames > 1 else [])
    assert [word for word, _ in content["tiles"]] == ([] if frames > 1 else ["a", "dog"])
