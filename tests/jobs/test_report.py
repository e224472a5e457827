from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from jobs.command import cli
from jobs.report import main
from tests import tiny


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A night of translations."""
    folder = tmp_path_factory.mktemp("lake")
    tiny.write_translator(f"{folder}/model")
    tiny.write_sentences(f"{folder}/in", shards=1, rows=3)
    tiny.write_night(f"{folder}/tables", "2026-01-31", f"{folder}/in", f"{folder}/model")
    return folder


def argv(lake: Path, *more: str) -> list[str]:
    return ["--tables", f"{lake}/tables", "--mlflow", f"sqlite:///{lake}/mlflow.db", *more]


def test_a_page_is_written_beside_the_tables_or_elsewhere(lake: Path) -> None:
    summary = main(argv(lake, "--ds", "2026-01-31"))
    assert summary == {
        "ds": "2026-01-31",
        "out": f"{lake}/tables/reports/2026-01-31.html",
        "tables": {"translations": {"rows": 3, "errors": 0}},
    }
    page = Path(summary["out"]).read_text()
    assert page.count("<figure>") == 3
    other = main(argv(lake, "--ds", "2026-01-31", "--out", f"{lake}/page.html", "--examples", "1"))
    assert other["out"] == f"{lake}/page.html"
    assert Path(lake, "page.html").read_text().count("<figure>") == 1


def test_mistakes_are_one_line(lake: Path) -> None:
    def refusal(*more: str) -> str:
        with pytest.raises(UsageError) as caught:
            main(argv(lake, *more))
        assert "\n" not in str(caught.value)
        return cli.with_flags(str(caught.value))

    assert refusal("--ds", "today").startswith("--ds 'today' is not a date")
    assert refusal("--ds", "2026-02-01").startswith(f"no table at {lake}/tables has rows of 2026-02-01: ")
    assert refusal("--ds", "2026-01-31", "--examples", "-1") == "--examples is -1: it must be 0 or more"
    assert "--ds" in refusal()
    inside = f"{lake}/tables/translations/_delta_log/x.json"
    assert refusal("--ds", "2026-01-31", "--out", inside) == (
        f"--out {inside} lies in the table {lake}/tables/translations: give a place outside of it"
    )
