"""The page about a night in a real browser: what it shows, what it complains of, and that it follows the reader."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid_models import TABLES
from pipelines import storage
from pipelines.nights import report
from tests import tiny
from tests.integration.test_kinds import clip

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at pages with")
WORDS = "<b>bold</b> & plain"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A night with photographs, a clip, what is done in it, sentences and an error."""
    folder = tmp_path_factory.mktemp("lake")
    tiny.write_captioner(f"{folder}/captioner")
    tiny.write_photos(f"{folder}/photos", shards=2, rows=3)
    storage.write_bytes(f"{folder}/clips/square.mp4", clip("mp4", "libx264"), storage.anything)
    tiny.write_recogniser(f"{folder}/recogniser")
    tiny.write_translator(f"{folder}/translator")
    Path(folder, "sentences").mkdir()
    Path(folder, "sentences", "a.txt").write_text(f"{WORDS}\n\n")
    tables = f"{folder}/tables"
    storage.write_bytes(f"{folder}/photos/square.mp4", clip("mp4", "libx264"), storage.anything)
    tiny.write_night(tables, "2026-01-31", f"{folder}/photos", f"{folder}/captioner")
    tiny.write_night(tables, "2026-01-31", f"{folder}/clips", f"{folder}/recogniser")
    tiny.write_night(tables, "2026-01-31", f"{folder}/sentences", f"{folder}/translator")
    written, _ = report.report(tables, list(TABLES.values()), "2026-01-31", f"sqlite:///{folder}/mlflow.db", 4)
    (folder / "page.html").write_text(written)
    return folder / "page.html"


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    return subprocess.run(
        [CHROMIUM, *common, f"--user-data-dir={page.parent}/profile", *options, page.as_uri()],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip


def test_it_shows_the_night_and_complains_of_nothing(page: Path) -> None:
    seen = browse(page, "--dump-dom")
    text = html.unescape(re.sub(r"<[^>]*>", " ", seen.stdout.split("</head>")[1]))
    assert "Night of 2026-01-31" in text
    assert "EmptyText × 1" in " ".join(text.split())
    assert WORDS in text, "a sentence is no markup"
    told = re.findall(r'<img [^>]*alt="([^"]*)"', seen.stdout)
    assert len(list(filter(None, told))) == 5, "photographs and a clip, each with its caption; an action"
    assert re.search(r"(waves|runs|walks) \(0\.\d\d\)", text)
    clips = re.findall(r'<figure class="clip">(.*?)</figure>', seen.stdout, re.DOTALL)
    middles = [["0.5 s", "1.5 s"], ["0.2 s", "0.8 s", "1.2 s", "1.8 s"]]
    assert [re.findall(r"\d\.\d s", shown) for shown in clips] == middles, "middles of equal parts"
    assert told.count("") == 4, "and what each of four captions of one word looked at"
    assert "CONSOLE" not in seen.stderr, "errors of the page, such as what its policy forbids"


def test_it_is_light_or_dark_and_fits_a_phone(page: Path, tmp_path: Path) -> None:
    pictures = {}
    for scheme, options in (("light", []), ("dark", ["--force-dark-mode"])):
        for width in (390, 1200):
            file = tmp_path / f"{scheme}-{width}.png"
            browse(page, *options, f"--window-size={width},1600", f"--screenshot={file}")
            pictures[scheme, width] = np.asarray(Image.open(file).convert("L")).astype(float)
    for width in (390, 1200):
        light, dark = (pictures[scheme, width] for scheme in ("light", "dark"))
        assert light.shape == dark.shape == (1600, width)
        assert np.median(light) > 200
        assert np.median(dark) < 60
        margins = np.concatenate([light[:, :4], light[:, -4:]], axis=1)
        assert margins.std() < 3, "nothing is wider than the page"
