"""Tiny models and shards for tests: untrained nets whose outputs are fixed by a seed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from hybrid_models import HYBRIDS, TABLES
from hybrid_models.captioner.captioner import Captioner, CaptionerDecoding
from hybrid_models.captioner.config import CaptionerConfig
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.nowcaster import Nowcaster
from hybrid_models.recogniser.config import RecogniserConfig
from hybrid_models.recogniser.recogniser import Recogniser, RecogniserDecoding
from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.translator import Translator, TranslatorDecoding
from jobs.command import cli
from pipelines import storage
from pipelines.cluster.resources import Compute
from pipelines.models import artifacts
from pipelines.models.session import Inference
from pipelines.nights import commit
from pipelines.nights.commit import Partition
from pipelines.nights.infer import Night
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import Shard, list_shards
from pipelines.reading.units import Part, placed
from pipelines.staging import checks, contents
from pipelines.staging.actors import Predictor
from pipelines.staging.pieces import Lineage, table_schema
from pipelines.staging.sink import StageSink

WORDS = "ein eine der die das Hund Katze Kind Ball rot blau grün läuft spielt schläft und im Park am See".split()  # noqa: SIM905
ROOT = Path(__file__).resolve().parent.parent


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of 2 to 9 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 10))) for _ in range(count)]


def translator(seed: int = 0) -> Translator:
    """A translator of about 50,000 parameters with random weights."""
    config = TranslatorConfig(
        vocab_size=300, embedding_size=16, hidden_size=32, attention_size=16, max_characters=200, max_source_tokens=60
    )
    pairs = [{"en": text, "de": text} for text in sentences(200)]
    assets = Translator.learn_assets(config, [t for pair in pairs for t in config.training_texts(pair)])
    torch.manual_seed(seed)
    return Translator(config, assets).eval()


def captioner(seed: int = 0, **changes: Any) -> Captioner:
    """A captioner on 32 x 32 images with random weights, with some fields of its configuration changed."""
    config = CaptionerConfig(
        encoder="test_efficientnet", encoder_weights="none", freeze_encoder=False, image_size=32, frames=2,
        embedding_size=16, hidden_size=32, attention_size=16, vocab_size=300,
    )  # fmt: skip
    config = replace(config, **changes)
    assets = Captioner.learn_assets(config, sentences(200))
    torch.manual_seed(seed)
    return Captioner(config, assets).eval()


def nowcaster(seed: int = 0) -> Nowcaster:
    """A nowcaster from three frames of 32 x 32 to ten minutes with random weights."""
    config = NowcasterConfig(past_frames=3, horizon_minutes=10, height=32, width=32, patch=8, hidden_dims=(8,))
    torch.manual_seed(seed)
    return Nowcaster(config, {}).eval()


def recogniser(seed: int = 0) -> Recogniser:
    """A recogniser of three actions in four frames of 32 x 32 with random weights."""
    config = RecogniserConfig(
        encoder="test_resnet", encoder_weights="none", freeze_encoder=False, image_size=32, frames=4, hidden_size=8
    )
    torch.manual_seed(seed)
    return Recogniser(config, Recogniser.learn_assets(config, ["runs", "walks", "waves"])).eval()


def write_translator(uri: str, seed: int = 0) -> str:
    """Stores a translator's artifact and returns its URI."""
    decoding = TranslatorDecoding(beam_size=1, max_length=12)
    artifacts.write(artifacts.make(translator(seed), decoding, {}, "A test's model.\n"), uri)
    return uri


def write_captioner(uri: str, seed: int = 0, **changes: Any) -> str:
    """Stores a captioner's artifact and returns its URI."""
    decoding = CaptionerDecoding(beam_size=1, max_length=8)
    artifacts.write(artifacts.make(captioner(seed, **changes), decoding, {}, "A test's model.\n"), uri)
    return uri


def write_nowcaster(uri: str, seed: int = 0) -> str:
    """Stores a nowcaster's artifact and returns its URI."""
    artifacts.write(artifacts.make(nowcaster(seed), NowcasterDecoding(), {}, "A test's model.\n"), uri)
    return uri


def write_recogniser(uri: str, seed: int = 0) -> str:
    """Stores a recogniser's artifact and returns its URI."""
    artifacts.write(artifacts.make(recogniser(seed), RecogniserDecoding(top=2), {}, "A test's model.\n"), uri)
    return uri


def write_sentences(folder: str, shards: int, rows: int, seed: int = 0) -> None:
    """Text shards `part-00000.txt …`."""
    for number in range(shards):
        text = "\n".join(sentences(rows, seed * 1000 + number)) + "\n"
        storage.write_bytes(storage.join(folder, f"part-{number:05d}.txt"), text.encode(), storage.anything)


def write_pairs(folder: str, rows: int, seed: int) -> None:
    """One shard of parallel text whose target is the source, reversed."""
    lines = []
    for number, sentence in enumerate(sentences(rows, seed)):
        pair = {"id": f"{seed}-{number}", "en": sentence, "de": " ".join(reversed(sentence.split()))}
        lines.append(json.dumps(pair, ensure_ascii=False) + "\n")
    storage.write_bytes(storage.join(folder, "pairs.jsonl"), "".join(lines).encode(), storage.anything)


def jpeg(seed: int, size: int = 48) -> bytes:
    """A JPEG of smooth colours."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar archive of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_photos(folder: str, shards: int, rows: int) -> None:
    """Tar shards `photos-000.tar …` of JPEGs."""
    for shard in range(shards):
        members = [(f"s{shard:02d}-{row:04d}.jpg", jpeg(shard * 1000 + row)) for row in range(rows)]
        storage.write_bytes(storage.join(folder, f"photos-{shard:03d}.tar"), tar(members), storage.anything)


def write_night(tables_uri: str, ds: str, shards_uri: str, model: str, run_id: str = "run", **decoding: object) -> None:
    """A night of a table, computed in this process, with some decoding options changed; an object for each shard."""
    night = stage_night(tables_uri, ds, shards_uri, model, run_id, **decoding)
    pieces = checks.verify(night.shards, night.folder)
    known = [replace(piece, bad=found.bad) for piece, found in zip(pieces, contents.each(pieces), strict=True)]
    commit.commit_night(night.partition, known, night.schema, {"run_id": run_id})


def stage_night(
    tables_uri: str, ds: str, shards_uri: str, model: str, run_id: str = "run", **decoding: object
) -> Night:
    """The same as far as its commit, which whoever infers it finds to be all that is to be done."""
    artifact = artifacts.read(model)
    inference = Inference(artifact, artifacts.override(artifact.decoding, decoding))
    partition = Partition.of(tables_uri, artifact.table, ds)
    night = Night(list_shards(shards_uri), partition, inference)
    decode = inference.decode()
    lineage = Lineage(artifact.model, artifact.version, night.fingerprint, run_id)
    predictor = Predictor(inference, Compute(8, 1, False), lineage)
    options = ReadOptions(decode.preprocess.window, limits=inference.limits)
    for shard in night.shards:
        stage(night.folder, night.schema, shard, *(predictor(decode(rows)) for rows in read_blocks(shard, options)))
    return night


def stage(folder: str, schema: pa.Schema, shard: Shard | Part, *rows: pa.Table) -> None:
    """Puts rows of a shard, or of one in a unit of several, into files with these columns, as a night does."""
    part = shard if isinstance(shard, Part) else Part(shard, shard.key)
    StageSink(folder, schema).write([placed(table.select(schema.names), part) for table in rows], None)


def write_rows(tables_uri: str, name: str, ds: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A night of a table with these rows; those with an `error` are error rows."""
    (hybrid,) = (hybrid for hybrid, table in TABLES.items() if table == name)
    schema = table_schema(HYBRIDS[hybrid].payload_schema)
    shard = Shard(f"{tables_uri}/{ds}.tar", 1, "etag")
    full = [
        {
            "status": "error" if "error" in row else "ok",
            "shard": shard.uri,
            "index": i,
            "last": i + 1 == len(rows),
            **row,
        }
        for i, row in enumerate(rows)
    ]
    table = storage.join(storage.absolute(tables_uri), name)
    folder = storage.join(table, f"ds={ds}", "0123456789ab")
    stage(folder, schema, shard, pa.Table.from_pylist(full, schema=schema))
    commit.commit_night(Partition(table, ds), checks.verify([shard], folder), schema, {"run_id": "run"})


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        """The last line on stdout."""
        return dict(json.loads(self.stdout.strip().splitlines()[-1]))


def command(*argv: str) -> list[str]:
    """`hybrid …` as this interpreter runs it."""
    return [sys.executable, "-m", "jobs.command.cli", *argv]


def environment(cwd: Path, **extra: str) -> dict[str, str]:
    """This process's environment, with MLflow in `cwd`."""
    mlflow = {"MLFLOW_TRACKING_URI": f"sqlite:///{cwd / 'mlflow.db'}"}
    return {**os.environ, "PYTHONPATH": str(ROOT), **mlflow, **extra}


def hybrid(*argv: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 900) -> Ran:
    """Runs `hybrid …` as a real process."""
    done = subprocess.run(
        command(*argv), cwd=cwd, env={**environment(cwd), **(env or {})}, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def hybrid_here(*argv: str, cwd: Path) -> Ran:
    """Runs `hybrid …` in this process, on its Ray cluster: what a process of its own would do, without its start."""
    printed, err = io.BytesIO(), io.StringIO()
    out = io.TextIOWrapper(printed, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["hybrid", *argv])
        with pytest.raises(SystemExit) as exited:
            cli.main()
    out.flush()
    return Ran(int(exited.value.code or 0), printed.getvalue().decode(), err.getvalue())
