import json

import pytest
import torch
from torch import nn

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.storage import StorageError
from pipelines.training import failures


def raised(error: Exception) -> Exception:
    """With a traceback."""
    try:
        raise error
    except Exception as caught:
        return caught


def misfit() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        nn.Linear(3, 4)(torch.zeros(2, 5))
    return caught.value


def added() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2, 3) + torch.zeros(2, 4)
    return caught.value


def viewed() -> Exception:
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(6).view(4, 2)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        FloatingPointError("not finite"),
        UsageError("wrong"),
        IndexError("9"),
        AttributeError("x"),
        misfit(),
        added(),
        viewed(),
    ],
)
def test_what_would_come_again_is_kept_and_raised_as_it_was(error: Exception, place: str) -> None:
    run = storage.join(place, "runs/mine")
    assert failures.comes_again(error)
    failures.keep(run, "first", raised(error))
    failure = failures.kept(run, "first")
    assert failure is not None
    again = failure.error()
    assert (type(again), str(again)) == (type(error), str(error))
    (note,) = again.__notes__
    assert note.startswith("In a training worker:\nTraceback (most recent call last):")
    assert note == f"In a training worker:\n{failure.trace}"
    assert "in raised" in note, "where it was"
    assert failures.kept(run, "second") is None, "another start tries again"


@pytest.mark.parametrize(
    "error",
    [
        OSError("the disk is full"),
        StorageError("cannot read x"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes of shape 3"),
        RuntimeError("NCCL error: unhandled system error"),
        ConnectionError("reset by peer"),
    ],
)
def test_what_the_world_does_is_tried_again(error: Exception, place: str) -> None:
    assert not failures.comes_again(error)
    failures.keep(place, "first", error)
    assert storage.list_all(place) == []


def test_no_password_is_kept(place: str) -> None:
    failures.keep(place, "first", raised(ValueError("cannot read https://me:geheim@store/x")))
    assert b"geheim" not in storage.read_bytes(storage.join(place, failures.FILE))
    failure = failures.kept(place, "first")
    assert failure is not None
    assert failure.message == "cannot read https://***@store/x"


@pytest.mark.parametrize(
    "kind", ["eval", "exec", "print", "KeyboardInterrupt", "SystemExit", "OSError", "TorchError", ""]
)
def test_an_unknown_kind_is_a_runtime_error_and_nothing_is_called(kind: str, place: str) -> None:
    said = {"attempt": "first", "kind": kind, "message": "1 / 0", "trace": ""}
    storage.write_bytes(storage.join(place, failures.FILE), json.dumps(said).encode())
    failure = failures.kept(place, "first")
    assert failure is not None
    error = failure.error()
    assert (type(error), str(error)) == (RuntimeError, f"{kind}: 1 / 0")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"attempt": "first"}', b'{"attempt": "first", "more": 1}'])
def test_a_damaged_note_says_nothing(content: bytes, place: str) -> None:
    storage.write_bytes(storage.join(place, failures.FILE), content)
    assert failures.kept(place, "first") is None
