from pipelines import storage
from pipelines.staging import uses
from pipelines.staging.pieces import list_pieces
from pipelines.staging.uses import Use


def marks(folder: str) -> list[str]:
    return [file.uri for file in storage.list_all(folder)]


def test_a_mark_says_who_uses_a_folder_and_is_no_piece(place: str) -> None:
    folder = storage.join(place, "features", "0123456789ab")
    for _ in range(2):
        uses.mark(folder, uses.RUN, "s3://lake/runs/mine")
    uses.mark(folder, uses.MODEL, "models:/translator/3")
    found = marks(folder)
    assert len(found) == 2, "one for each user"
    assert {uses.read(uri) for uri in found} == {
        Use("run", "s3://lake/runs/mine"),
        Use("model", "models:/translator/3"),
    }
    assert all(uses.MARK.fullmatch(uri.removeprefix(storage.absolute(folder) + "/")) for uri in found)
    assert list_pieces(folder) == {}


def test_a_damaged_mark_says_nothing(place: str) -> None:
    uri = storage.join(place, "_used", "0123456789abcdef.json")
    assert uses.read(uri) is None
    for content in (b"", b"{}", b"[1]", b'{"kind": "run"}', b'{"kind": "somebody", "user": "x"}', b"\xff"):
        storage.write_bytes(uri, content, storage.anything)
        assert uses.read(uri) is None, content
