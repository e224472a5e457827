import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import mlflow
import pytest

from hybrid_models.errors import UsageError
from hybrid_models.translator.translator import TranslatorDecoding
from jobs import evaluate, models
from jobs.command import cli
from jobs.promote import PromoteOptions, main, run
from pipelines.models import artifacts, registry
from pipelines.models.tracking import Tracker
from pipelines.staging.checks import RefusedError
from tests import tiny


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else promotes these tests' models, except where a test says so."""
    monkeypatch.setattr(registry, "SETTLE_SECONDS", 0)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs to judge on, and two registered translators."""
    folder = tmp_path_factory.mktemp("lake")
    tiny.write_pairs(str(folder / "test"), 12, seed=4)
    for seed in (0, 1):
        register(mlflow_of(folder), translator_files(seed))
    return folder


def translator_files(seed: int) -> dict[str, bytes]:
    training = {"recipe": "translator-demo", "data": "pairs", "metrics": {"val_bleu": 1.5 + seed}}
    return artifacts.make(tiny.translator(seed), TranslatorDecoding(beam_size=1, max_length=12), training, "Card.\n")


def register(uri: str, files: dict[str, bytes], name: str = "translator") -> None:
    tracker = Tracker(uri)
    tracker.start("train", {}, {})
    tracker.register(name, files)
    tracker.finish()


def mlflow_of(lake: Path) -> str:
    return f"sqlite:///{lake}/mlflow.db"


def argv(lake: Path, *more: str) -> list[str]:
    return ["translator", "--input", f"{lake}/test", "--storage", f"{lake}/lake", "--mlflow", mlflow_of(lake), *more]


def version(number: str) -> str:
    return f"models:/translator/{number}"


@pytest.mark.usefixtures("ray_cluster")
def test_models_become_champions_one_after_the_other(lake: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    uri = mlflow_of(lake)
    client = mlflow.MlflowClient(uri)
    with pytest.raises(RefusedError) as refused:  # it has learned nothing: words at random
        main(argv(lake, "--metric", "chrf"))
    assert str(refused.value).startswith(f"chrf of {version('2')} is ")
    assert "of the baseline 'copy the source'" in str(refused.value)
    assert registry.champion(uri, "translator") is None

    forced = main(["translator", "--model", version("1"), "--force", "the first one", "--mlflow", uri])
    assert (forced["promoted"], forced["champion"], forced["forced"]) == (True, version("1"), "the first one")
    assert registry.champion(uri, "translator") == "1"

    compared = evaluate.main(["--compare", version("1"), version("2"), *argv(lake)[1:]])
    assert (compared["first"], compared["second"], compared["samples"]) == (version("1"), version("2"), 12)
    chrf = compared["metrics"]["chrf"]
    assert chrf["difference"] == pytest.approx(chrf["second"] - chrf["first"])
    assert chrf["low"] < chrf["difference"] < chrf["high"]
    logged = client.get_run(compared["mlflow_run_id"]).data.metrics
    assert logged["chrf/difference"] == pytest.approx(chrf["difference"])
    worse, better = ("1", "2") if chrf["difference"] > 0 else ("2", "1")
    gap = abs(chrf["difference"])
    main(["translator", "--model", version(better), "--force", "to see", "--mlflow", uri])

    with pytest.raises(RefusedError, match="--force REASON promotes it all the same"):
        main(argv(lake, "--model", version(worse), "--metric", "chrf", "--margin", str(0.9 * gap)))
    assert registry.champion(uri, "translator") == better
    noted = json.loads(client.get_model_version("translator", worse).tags["hybrid.promotion"])
    assert (noted["promoted"], noted["passed"], noted["rival"]) == (False, False, version(better))

    done = main(argv(lake, "--model", version(worse), "--metric", "chrf", "--margin", str(1.1 * gap)))
    assert (done["promoted"], done["champion"], done["champion_before"]) == (True, version(worse), version(better))
    assert registry.champion(uri, "translator") == worse
    run = client.get_run(done["mlflow_run_id"])
    assert (run.info.status, run.data.params["metric"]) == ("FINISHED", "chrf")
    assert str(client.get_model_version_by_alias("translator", "previous").version) == better

    again = main(argv(lake, "--model", version(worse)))
    assert (again["promoted"], again["champion"]) == (False, version(worse))

    models.main(["--mlflow", uri, "--format", "json"])
    rows = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [row["model"] for row in rows] == [version("2"), version("1")]
    assert [row["metrics"] for row in rows] == ["bleu=2.5", "bleu=1.5"]
    told = {row["model"]: row["promotion"] for row in rows}
    assert told[version(worse)].startswith("promoted; chrf ")
    assert told[version(better)].startswith("forced: ")


def test_a_version_of_another_model_is_no_candidate(tmp_path: Path) -> None:
    uri = mlflow_of(tmp_path)
    register(uri, translator_files(0))
    register(uri, translator_files(1), "mine")
    with pytest.raises(UsageError, match="--model models:/mine/1 is no version of the registered model 'translator'"):
        main(["translator", "--model", "models:/mine/1", "--force", "x", "--mlflow", uri])
    assert registry.champion(uri, "translator") is None


def test_a_champion_of_an_older_format_is_replaced_by_force(lake: Path, tmp_path: Path) -> None:
    uri, old = mlflow_of(tmp_path), translator_files(0)
    meta = json.loads(old[artifacts.CONFIG])
    register(uri, {**old, artifacts.CONFIG: json.dumps({**meta, "format": 1}).encode()})
    registry.promote(uri, "translator", "1")
    register(uri, translator_files(1))
    with pytest.raises(UsageError) as refused:
        main(["translator", "--input", f"{lake}/test", "--storage", f"{lake}/lake", "--mlflow", uri])
    assert f"the champion cannot be judged ({version('1')} has artifact format 1" in str(refused.value)
    assert str(refused.value).endswith("; --force REASON without --input replaces it")
    main(["translator", "--force", "format 2", "--mlflow", uri])
    assert registry.champion(uri, "translator") == "2"


def test_a_champion_never_lacks_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is noted before the alias moves: where MLflow goes away in between, the same command does the rest."""
    uri = mlflow_of(tmp_path)
    register(uri, translator_files(0))
    with monkeypatch.context() as away:
        away.setattr(registry, "promote", Mock(side_effect=ConnectionError("MLflow is away")))
        with pytest.raises(ConnectionError):
            main(["translator", "--force", "the old one fails", "--mlflow", uri])
    tags = mlflow.MlflowClient(uri).get_model_version("translator", "1").tags
    noted = json.loads(tags["hybrid.promotion"])
    assert (noted["forced"], noted["promoted"]) == ("the old one fails", False)
    assert registry.champion(uri, "translator") is None
    assert main(["translator", "--force", "the old one fails", "--mlflow", uri])["promoted"]
    assert registry.champion(uri, "translator") == "1"


# ---- two promotions at the same time ---------------------------------------------------------------------------------
class Interleaving:
    """Lets threads take steps in a fixed order, one at a time."""

    def __init__(self, order: Sequence[str]) -> None:
        self.left = list(order)
        self.changed = threading.Condition()
        self.mine = threading.local()

    def step(self, name: str) -> None:
        """Ends this thread's last step, and waits for its next one."""
        self.end()
        with self.changed:
            assert self.changed.wait_for(lambda: self.left[:1] == [name], timeout=60), f"{name}: {self.left} are left"
        self.mine.step = name

    def end(self) -> None:
        with self.changed:
            if getattr(self.mine, "step", None) in self.left[:1]:
                self.left.pop(0)
                self.changed.notify_all()


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An MLflow with three translators, of which the first is the champion. Two promotions both find it so. Artifacts
    are not fetched from it: MLflow's own functions for that are not made for threads."""
    uri, files = mlflow_of(tmp_path), translator_files(0)
    for _ in range(3):
        register(uri, files)
    registry.promote(uri, "translator", "1")
    monkeypatch.setattr(artifacts, "read", lambda model, *_: artifacts.Artifact(files, model, model[-1]))
    both, note = threading.Barrier(2, timeout=60), registry.note

    def noted(uri: str, name: str, number: str, decision: dict[str, object]) -> None:
        if not decision["promoted"]:
            both.wait()
        note(uri, name, number, decision)

    monkeypatch.setattr(registry, "note", noted)
    return uri


def promoted_at_once(uri: str, versions: Sequence[str], end: Callable[[], None] = lambda: None) -> str:
    """Promotes versions at the same time by force, and checks that one of them wins and the others say so; which."""

    def outcome(number: str) -> tuple[int, str]:
        try:
            run("translator", PromoteOptions(force=f"by {number}"), version(number), uri)
        except Exception as error:
            return cli.outcome(error)
        finally:
            end()
        return cli.DONE, ""

    with ThreadPoolExecutor(len(versions)) as pool:
        outcomes = dict(zip(versions, pool.map(outcome, versions), strict=True))
    winner = str(registry.champion(uri, "translator"))
    lost = (cli.FAILED, f"failed: RuntimeError: {version(winner)} became the champion meanwhile: start again, ")
    assert outcomes[winner] == (cli.DONE, "")
    assert all((code, line[: len(lost[1])]) == lost for number, (code, line) in outcomes.items() if number != winner)
    client = mlflow.MlflowClient(uri)
    for number in versions:
        noted = json.loads(client.get_model_version("translator", number).tags["hybrid.promotion"])
        assert (noted["promoted"], noted["forced"]) == (number == winner, f"by {number}")
    return winner


@pytest.mark.parametrize(
    ("order", "winner"),
    [
        ("2.look 3.look 2.set 3.set 2.read 3.read", "3"),
        ("2.look 3.look 2.set 3.set 3.read 2.read", "3"),
        ("2.look 3.look 3.set 2.set 3.read 2.read", "2"),
        ("2.look 3.look 2.set 2.read 3.set 3.read", "2"),  # the second is slower than the first waits
        ("2.look 2.set 3.look 2.read", "2"),
        ("2.look 2.set 2.read 3.look", "2"),
    ],
)
def test_of_two_promotions_at_once_one_wins(
    three: str, order: str, winner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Interleaving(order.split())
    look, read = registry.promote, registry.confirm
    set_alias = mlflow.MlflowClient.set_registered_model_alias

    def looks(uri: str, name: str, number: str, *more: str) -> None:
        steps.step(f"{number}.look")
        look(uri, name, number, *more)

    def sets(client: mlflow.MlflowClient, name: str, alias: str, number: str) -> None:
        if alias == registry.CHAMPION and getattr(steps.mine, "step", "").endswith(".look"):
            steps.step(f"{number}.set")
        set_alias(client, name, alias, number)

    def reads(uri: str, name: str, number: str, before: set[tuple[str, str]]) -> None:
        steps.step(f"{number}.read")
        read(uri, name, number, before)

    monkeypatch.setattr(registry, "promote", looks)
    monkeypatch.setattr(registry, "confirm", reads)
    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_alias", sets)
    assert promoted_at_once(three, ["2", "3"], steps.end) == winner
    assert steps.left == []
    assert str(mlflow.MlflowClient(three).get_model_version_by_alias("translator", "previous").version) == "1"


def test_promotions_at_once_in_any_order(three: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "SETTLE_SECONDS", 1.0)
    champion = "1"
    for _ in range(4):
        champion = promoted_at_once(three, [number for number in "123" if number != champion])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "hybrid promote needs the name of a registered model first: `hybrid models` lists them"),
        (["painter", "--force", "x"], "there is no registered model painter yet: `hybrid train` registers one"),
        (["translator"], "--input is needed"),
        (["translator", "--input", "x", "--margin", "-1"], "--margin is -1.0: it must be a number from 0 on"),
        (["translator", "--input", "x", "--margin", "nan"], "--margin is nan: it must be a number from 0 on"),
        (["translator", "--input", "x", "--metric", "csi_1"], "--metric 'csi_1' is unknown: use bleu, chrf"),
        (["translator", "--input", "x", "--model", "./folder"], "--model ./folder is not registered"),
        (
            ["captioner", "--force", "x", "--model", "models:/translator/1"],
            "is no version of the registered model 'cap",
        ),
        (["translator", "--input", "{lake}/*", "--storage", "{lake}"], "may reach into {lake}/evaluations, which this"),
        (["translator", "--input", "{lake}/none", "--storage", "{lake}/lake"], "no shards found at {lake}/none"),
    ],
)
def test_mistakes_are_one_line(lake: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_of(lake))
    with pytest.raises(UsageError) as caught:
        main([word.format(lake=lake) for word in words])
    assert message.format(lake=lake) in cli.with_flags(str(caught.value))
    assert "\n" not in str(caught.value)
