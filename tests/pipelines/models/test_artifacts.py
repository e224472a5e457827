import json
import os
import pickle
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hybrid_models.captioner.captioner import CaptionerDecoding
from hybrid_models.errors import UsageError
from hybrid_models.nowcaster.config import NowcasterConfig
from hybrid_models.nowcaster.decoding import NowcasterDecoding
from hybrid_models.nowcaster.nowcaster import Nowcaster
from hybrid_models.translator.interface import TranslatorInterface
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines.models import artifacts
from pipelines.reading.limits import Limits
from tests import tiny

TEXTS = tiny.sentences(12, seed=5)
GREEDY = {"beam_size": 1, "max_length": 12}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A tiny translator's artifact."""
    return artifacts.make(tiny.translator(), TranslatorDecoding(beam_size=2, max_length=12), {"recipe": "x"}, "Card.\n")


def store(files: dict[str, bytes], folder: Path) -> str:
    artifacts.write(files, str(folder))
    return str(folder)


def without_colour(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a nowcaster as they were before it had an option for colour."""
    meta = json.loads(files["config.json"])
    del meta["config"]["colour"]
    return {**files, "config.json": json.dumps(meta).encode()}


def refusal(uri: str, expected: str | None = None) -> str:
    """The one line with which an artifact is refused."""
    with pytest.raises(UsageError) as caught:
        artifacts.read(uri, expected).load()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("write", [tiny.write_translator, tiny.write_nowcaster])
def test_a_model_is_loaded_without_torchs_compiler(write: Callable[[str], str], tmp_path: Path) -> None:
    """Its import would take each process 1.3 seconds. (A captioner's encoder is timm's, which imports it anyway.)"""
    load = f"artifacts.read({write(str(tmp_path))!r}).load()"
    code = f"import sys; from pipelines.models import artifacts; {load}; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, check=False).returncode == 0


def test_a_nowcaster_of_before_there_were_colours_is_grey(tmp_path: Path) -> None:
    config = NowcasterConfig(
        past_frames=2, horizon_minutes=3, height=8, width=8, unit="intensity", patch=4, hidden_dims=(6,)
    )
    grey, frames = Nowcaster(config, {}), np.random.default_rng(0).random((2, 8, 8))
    files = without_colour(artifacts.make(grey, NowcasterDecoding(), {}, "Card.\n"))
    again: Any = artifacts.read(store(files, tmp_path / "old")).load()
    assert again.config == config
    np.testing.assert_array_equal(again.nowcast(frames, 3, 1), grey.nowcast(frames, 3, 1))
    coloured = artifacts.make(Nowcaster(replace(config, colour=True), {}), NowcasterDecoding(), {}, "Card.\n")
    again = artifacts.read(store(coloured, tmp_path / "new")).load()
    assert again.nowcast(frames[..., None].repeat(3, axis=3), 3, 1).shape == (3, 8, 8, 3)
    uri = store(without_colour(coloured), tmp_path / "wrong")
    assert refusal(uri) == f"{uri}/weights.safetensors: 'net.head.bias' is [48], config.json needs [16]"


def test_a_stored_model_predicts_what_the_original_does(files: dict[str, bytes], tmp_path: Path) -> None:
    original = tiny.translator()
    artifact = artifacts.read(store(files, tmp_path / "model"), "translator")
    again: Any = artifact.load()
    assert not again.training
    assert again.translate(TEXTS, **GREEDY) == original.translate(TEXTS, **GREEDY)
    assert len(set(original.translate(TEXTS, **GREEDY))) > 1, "the net must look at its input"
    assert artifact.config == original.config
    assert artifact.decoding == TranslatorDecoding(beam_size=2, max_length=12)
    assert artifact.assets == original.assets
    assert (artifact.model, artifact.version) == (str(tmp_path / "model"), artifact.meta["weights_sha256"][:12])
    assert artifact.meta["training"] == {"recipe": "x"}
    assert (tmp_path / "model/README.md").read_text() == "Card.\n"
    assert artifacts.load_hybrid(str(tmp_path / "model")).translate(TEXTS[:2], **GREEDY) == original.translate(
        TEXTS[:2], **GREEDY
    )


def test_config_json_is_written_last(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(artifacts.storage, "write_bytes", lambda uri, *_: written.append(uri))
    artifacts.write(files, "/x")
    assert written[-1] == "/x/config.json"
    assert sorted(written) == ["/x/README.md", "/x/config.json", "/x/tokenizer.json", "/x/weights.safetensors"]


# ---- damage ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "no model at {uri}: there is no config.json"),
        ("weights.safetensors", "{uri} lacks weights.safetensors: the artifact is incomplete, copy it again"),
        ("tokenizer.json", "{uri} lacks tokenizer.json: the artifact is incomplete, copy it again"),
    ],
)
def test_missing_files_are_named(files: dict[str, bytes], tmp_path: Path, name: str, message: str) -> None:
    uri = store(files, tmp_path / "m")
    (tmp_path / "m" / name).unlink()
    assert refusal(uri).startswith(message.format(uri=uri))


def test_no_folder_or_a_file_instead_of_one(files: dict[str, bytes], tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "none")).startswith(f"no model at {tmp_path}/none: there is no config.json")
    store(files, tmp_path / "m")
    assert refusal(str(tmp_path / "m/config.json")).startswith(f"no model at {tmp_path}/m/config.json")


@pytest.mark.parametrize(
    "damage",
    [lambda w: w[:-5], lambda w: w[:100], lambda w: b"", lambda w: w[:-1] + bytes([w[-1] ^ 1]), lambda w: w + b"\0"],
    ids=["truncated", "header cut", "empty", "one bit", "longer"],
)
def test_altered_weights_are_noticed(files: dict[str, bytes], tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    uri = store({**files, artifacts.WEIGHTS: damage(files[artifacts.WEIGHTS])}, tmp_path / "m")
    expected = f"{uri}/weights.safetensors is truncated or altered (checksum): copy the artifact again"
    assert refusal(uri) == expected


def with_weights(files: dict[str, bytes], change: Callable[[dict[str, torch.Tensor]], None]) -> dict[str, bytes]:
    """An artifact whose checksum fits its changed weights."""
    tensors = load_tensors(files[artifacts.WEIGHTS])
    change(tensors)
    return with_meta({**files, artifacts.WEIGHTS: save_tensors(tensors)}, lambda meta: None)


def with_meta(files: dict[str, bytes], change: Callable[[dict[str, Any]], Any]) -> dict[str, bytes]:
    """An artifact with another config.json, whose checksum fits its weights."""
    import hashlib

    meta = json.loads(files[artifacts.CONFIG])
    meta["weights_sha256"] = hashlib.sha256(files[artifacts.WEIGHTS]).hexdigest()
    change(meta)
    return {**files, artifacts.CONFIG: json.dumps(meta).encode()}


def test_weights_of_another_net_are_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    def shorter(tensors: dict[str, torch.Tensor]) -> None:
        tensors["bridge.bias"] = tensors["bridge.bias"][:-1].clone()

    uri = store(with_weights(files, shorter), tmp_path / "shape")
    assert refusal(uri) == f"{uri}/weights.safetensors: 'bridge.bias' is [31], config.json needs [32]"
    uri = store(with_weights(files, lambda tensors: tensors.pop("bridge.bias")), tmp_path / "missing")  # type: ignore[arg-type]
    assert refusal(uri) == f"{uri}/weights.safetensors lacks 'bridge.bias': it does not belong to its config.json"
    uri = store(with_weights(files, lambda tensors: tensors.update(more=torch.zeros(1))), tmp_path / "more")
    assert refusal(uri) == f"{uri}/weights.safetensors has unknown 'more': it does not belong to its config.json"
    uri = store(with_meta({**files, artifacts.WEIGHTS: b"no tensors"}, lambda meta: None), tmp_path / "junk")
    assert refusal(uri).startswith(f"{uri}/weights.safetensors is damaged (")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["config"].update(hiden_size=3), "{uri}/config.json: unknown key 'hiden_size'; known are source, "),
        (lambda m: m["config"].update(hidden_size="many"), "{uri}/config.json: 'hidden_size': "),
        (lambda m: m["config"].update(dropout=None), "{uri}/config.json: 'dropout': "),
        (lambda m: m["config"].update(dropout=1.5), "{uri}/config.json: dropout is 1.5: it must be in [0, 1)"),
        (lambda m: m.update(config=[1]), "{uri}/config.json: Input should be a dictionary"),
        (lambda m: m["decoding"].update(beams=3), "{uri}/config.json: unknown key 'beams'; known are beam_size, "),
        (lambda m: m["decoding"].update(beam_size=2.5), "{uri}/config.json: 'beam_size': "),
        (lambda m: m.update(format=99), "{uri} has artifact format 99, this version reads 2"),
        (lambda m: m.pop("format"), "{uri} has artifact format None, this version reads 2"),
        (lambda m: m.update(hybrid=["painter"]), "{uri} is a '['painter']'; known hybrids: captioner, nowcaster, "),
        (lambda m: m.update(hybrid="painter"), "{uri} is a 'painter'; known hybrids: captioner, nowcaster, recogn"),
        (
            lambda m: m.update(schema_version=2),
            "{uri} writes schema 2 of translations, this version 1: use a newer version",
        ),
        (lambda m: m.pop("assets"), "{uri}/config.json is damaged ('assets'): copy the artifact again"),
        (lambda m: m.pop("schema_version"), "{uri}/config.json is damaged ("),
        (lambda m: m.pop("weights_sha256"), "{uri}/config.json is damaged ("),
        (lambda m: m.pop("config"), "{uri}/config.json is damaged ("),
        (lambda m: m.pop("decoding"), "{uri}/config.json is damaged ("),
        (lambda m: m.update(assets=["../../secret"]), "{uri}/config.json is damaged ("),
        (lambda m: m.update(assets=3), "{uri}/config.json is damaged ("),
        (
            lambda m: m.update(assets=["tokenizer.json"] * 2),
            "{uri}/config.json is damaged ('tokenizer.json' is named tw",
        ),
        (lambda m: m.update(assets=["weights.safetensors"]), "{uri}/config.json is damaged ('weights.safetensors' is"),
    ],
)
def test_a_wrong_config_is_refused(
    files: dict[str, bytes], tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    uri = store(with_meta(files, change), tmp_path / "m")
    assert refusal(uri).startswith(message.format(uri=uri))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff\xfe"])
def test_a_config_that_is_no_json_object_is_refused(files: dict[str, bytes], tmp_path: Path, content: bytes) -> None:
    uri = store({**files, artifacts.CONFIG: content}, tmp_path / "m")
    assert refusal(uri).startswith(f"{uri}/config.json is damaged (")


# ---- made to do harm ---------------------------------------------------------------------------------------------
@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was looked for on the network."""
    asked: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        asked.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


@pytest.mark.parametrize("encoder", ["hf-hub:someone/model", "hf_hub:someone/model", "someone/model", "local-dir:/etc"])
def test_no_model_is_fetched_on_load(tmp_path: Path, no_network: list[Any], encoder: str) -> None:
    files = artifacts.make(tiny.captioner(), CaptionerDecoding(), {}, "")
    uri = store(with_meta(files, lambda meta: meta["config"].update(encoder=encoder)), tmp_path / "m")
    expected = f"{uri}/config.json: encoder '{encoder}' cannot be built: it is none of timm's own models"
    assert refusal(uri) == expected
    assert no_network == []


def test_weights_from_the_hub_are_for_training_only(tmp_path: Path, no_network: list[Any]) -> None:
    files = artifacts.make(tiny.captioner(), CaptionerDecoding(), {}, "")
    artifacts.read(store(with_meta(files, lambda m: m["config"].update(encoder_weights="hub")), tmp_path / "m")).load()
    assert no_network == []


LARGE = 1 << 30


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (tiny.translator, {"hidden_size": 10_000_000}, ": 'bridge.bias' is [32], config.json needs [10000000]"),
        (tiny.translator, {"embedding_size": 100_000_000}, "config.json needs "),
        (tiny.translator, {"hidden_size": 10**9}, "/config.json: no net is that large: "),
        (tiny.translator, {"hidden_size": 10**30}, "/config.json: no net is that large: "),
        (tiny.translator, {"encoder_layers": 10**9}, "parameters"),
        (tiny.captioner, {"hidden_size": 10_000_000}, "config.json needs "),
        (tiny.captioner, {"attention_size": 10**8}, "config.json needs "),
        (tiny.nowcaster, {"hidden_dims": [10**7]}, "config.json needs "),
        (tiny.nowcaster, {"hidden_dims": [1] * 100_000}, "parameters"),
        (tiny.nowcaster, {"kernel_size": 10**7 + 1}, "config.json needs "),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(
    tmp_path: Path, make: Callable[[], Any], change: dict[str, Any], message: str
) -> None:
    hybrid = make()
    files = artifacts.make(hybrid, hybrid.Decoding(), {}, "")
    uri = store(with_meta(files, lambda meta: meta["config"].update(change)), tmp_path / "m")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (psutil.Process().memory_info().data + LARGE, hard))
    try:
        said = refusal(uri)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, hard))
    assert said.startswith(uri)
    assert message in said


def test_large_images_take_no_memory_on_load(tmp_path: Path) -> None:
    files = artifacts.make(tiny.captioner(), CaptionerDecoding(), {}, "")
    changed = with_meta(files, lambda meta: meta["config"].update(image_size=200_000))
    artifacts.read(store(changed, tmp_path / "m")).load()


@pytest.mark.parametrize("length", [0, 10**18, (1 << 63) + 5, 200 << 20])
def test_a_header_that_lies_about_its_length(files: dict[str, bytes], tmp_path: Path, length: int) -> None:
    weights = length.to_bytes(8, "little") + files[artifacts.WEIGHTS][8:]
    uri = store(with_meta({**files, artifacts.WEIGHTS: weights}, lambda meta: None), tmp_path / "m")
    expected = f"{uri}/weights.safetensors is damaged (its header is cut off or too large): copy the artifact again"
    assert refusal(uri) == expected


@pytest.mark.parametrize("header", [b"[]", b'{"a": 1}', b'{"a": {"shape": ["x"]}}', b"[" * 100_000, b'{"a": {}}'])
def test_a_header_of_another_form(files: dict[str, bytes], tmp_path: Path, header: bytes) -> None:
    weights = len(header).to_bytes(8, "little") + header
    uri = store(with_meta({**files, artifacts.WEIGHTS: weights}, lambda meta: None), tmp_path / "m")
    assert refusal(uri).startswith(f"{uri}/weights.safetensors is damaged (")


@pytest.mark.parametrize("depth", [60, 900, 100_000])
def test_deeply_nested_json_is_damage(files: dict[str, bytes], tmp_path: Path, depth: int) -> None:
    deep = files[artifacts.CONFIG].replace(b'"recipe": "x"', b'"recipe": ' + b"[" * depth + b"]" * depth)
    uri = store({**files, artifacts.CONFIG: deep}, tmp_path / "m")
    assert refusal(uri).startswith(f"{uri}/config.json is damaged (")
    uri = store({**files, "tokenizer.json": b"[" * depth + b"]" * depth}, tmp_path / "t")
    assert "tokenizer.json is not a tokenizer (" in refusal(uri)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "weights.safetensors"])
def test_files_that_are_too_large_are_not_read(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    uri = store(files, tmp_path / "m")
    with (tmp_path / "m" / name).open("ab") as sparse:
        sparse.truncate(1 << 40)
    assert refusal(uri).startswith(f"{uri}/{name} has 1,099,511,627,776 bytes, more than ")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "x\0"])
def test_assets_have_plain_names(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    uri = store(with_meta(files, lambda meta: meta.update(assets=[name])), tmp_path / "m")
    assert refusal(uri).startswith(f"{uri}/config.json is damaged ('{name}' is no plain file name")


def test_another_hybrid_than_expected_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    uri = store(files, tmp_path / "m")
    assert refusal(uri, "captioner") == f"{uri} is a translator, but a captioner is needed"


class Trap:
    """What an attacker would plant: unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_pickles_are_never_executed(files: dict[str, bytes], tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    evil = pickle.dumps(Trap(trap))
    planted = {"pytorch_model.bin": evil, "python_model.pkl": evil, "weights.pt": evil}
    uri = store({**files, **planted}, tmp_path / "beside")
    assert artifacts.load_hybrid(uri).translate(TEXTS[:1]) == tiny.translator().translate(
        TEXTS[:1], beam_size=2, max_length=12
    )
    torch.save(Trap(trap), tmp_path / "saved.pt")
    for number, content in enumerate((evil, (tmp_path / "saved.pt").read_bytes())):
        uri = store(with_meta({**files, artifacts.WEIGHTS: content}, lambda meta: None), tmp_path / f"as{number}")
        assert refusal(uri).startswith(f"{uri}/weights.safetensors is damaged")
        uri = store({**files, "tokenizer.json": content}, tmp_path / f"asset{number}")
        with pytest.raises(UsageError):
            artifacts.read(uri).load()
    assert not trap.exists()
    pickle.loads(evil)
    assert trap.exists(), "the trap itself works"


# ---- fingerprints ------------------------------------------------------------------------------------------------
def test_the_fingerprint_changes_with_all_that_decides_an_output(files: dict[str, bytes], tmp_path: Path) -> None:
    artifact = artifacts.read(store(files, tmp_path / "a"))
    moved = artifacts.read(store({**files, artifacts.CARD: b"Other words.\n"}, tmp_path / "b"))
    decoding, limits = artifact.decoding, Limits()
    first = artifact.fingerprint(decoding, limits)
    assert moved.fingerprint(decoding, limits) == first, "the place and the card decide nothing"
    assert len(first) == 64

    def config(meta: dict[str, Any]) -> None:
        meta["config"]["max_characters"] = 201

    tokenizer = {**files, "tokenizer.json": files["tokenizer.json"] + b"\n"}
    others = [
        artifacts.make(tiny.translator(seed=1), TranslatorDecoding(), {}, ""),
        tokenizer,
        with_meta(files, config),
    ]
    changed = [
        artifacts.read(store(other, tmp_path / str(i))).fingerprint(decoding, limits) for i, other in enumerate(others)
    ]
    changed.append(artifact.fingerprint(artifacts.override(decoding, {"beam_size": 3}), limits))
    changed.append(artifact.fingerprint(decoding, replace(limits, max_bytes=1)))
    assert len({first, *changed}) == 6


def test_samples_of_a_mended_step_are_others(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = artifacts.read(store(files, tmp_path))
    before = artifact.fingerprint(TranslatorDecoding(), Limits())
    monkeypatch.setattr(TranslatorInterface, "samples_version", TranslatorInterface.samples_version + 1)
    assert artifact.fingerprint(TranslatorDecoding(), Limits()) != before


def test_the_fingerprint_ignores_where_training_happened(files: dict[str, bytes], tmp_path: Path) -> None:
    again = with_meta(files, lambda meta: meta.update(training={"run": "elsewhere"}))
    prints = {
        artifacts.read(store(f, tmp_path / str(i))).fingerprint(TranslatorDecoding(), Limits())
        for i, f in enumerate((files, again))
    }
    assert len(prints) == 1


def test_fingerprints_of_json_values_do_not_depend_on_key_order() -> None:
    assert artifacts.fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == artifacts.fingerprint(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )
    assert artifacts.fingerprint({"a": 1}) != artifacts.fingerprint({"a": "1"})


# ---- options ------------------------------------------------------------------------------------------------------
def test_override_changes_what_is_named_and_checks_it() -> None:
    base = CaptionerDecoding(beam_size=3, max_length=9)
    assert artifacts.override(base, {"beam_size": 1}) == CaptionerDecoding(beam_size=1, max_length=9)
    assert artifacts.override(base, {}) == base
    with pytest.raises(UsageError, match=r"^decoding: unknown key 'temperature'; known are beam_size, length_penalty"):
        artifacts.override(base, {"temperature": 1.0})
    with pytest.raises(UsageError, match=r"^decoding: 'beam_size': "):
        artifacts.override(base, {"beam_size": "wide"})
    with pytest.raises(UsageError, match=r"max_length is 0: it must be from 1 to 10000"):
        artifacts.override(base, {"max_length": 0})
