import subprocess
import sys
from operator import attrgetter

import pytest

import hybrid_models
from hybrid_models import HYBRIDS, Captioner, Hybrid
from tests import tiny


def test_the_registry_holds_each_hybrid_under_its_own_name() -> None:
    assert list(HYBRIDS) == ["captioner", "nowcaster", "recogniser", "translator"]
    assert len(HYBRIDS) == 4
    for name, hybrid in HYBRIDS.items():
        assert issubclass(hybrid, Hybrid)
        assert hybrid.name == name
    assert HYBRIDS["captioner"] is Captioner


def test_an_unknown_hybrid_is_not_in_it() -> None:
    assert "os" not in HYBRIDS
    with pytest.raises(KeyError):
        HYBRIDS["os"]


def test_every_public_name_is_there() -> None:
    for name in hybrid_models.__all__:
        assert getattr(hybrid_models, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Magician'"):
        attrgetter("Magician")(hybrid_models)


WITHOUT_TORCH = [
    "pipelines.nights.tables",
    "pipelines.reading.sandbox.guard",
    "jobs.command.writers",
    "pipelines.staging.actors",
    *(f"hybrid_models.{name}.interface" for name in HYBRIDS),
]


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_decoding_writing_and_asking_need_no_torch(module: str) -> None:
    """Every process of the cluster that only decodes or writes would pay seconds for it."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, check=False).returncode == 0


def test_a_hybrids_interface_is_that_of_its_net() -> None:
    for name, kind in HYBRIDS.items():
        found = hybrid_models.interface_of(name)
        assert issubclass(kind, found)
        assert (found.name, found.payload_schema) == (name, kind.payload_schema)
        assert hybrid_models.decoding_of(name) is found.Decoding
    with pytest.raises(KeyError, match="magician"):
        hybrid_models.interface_of("magician")
    with pytest.raises(KeyError, match="magician"):
        hybrid_models.decoding_of("magician")
    assert "magician" not in HYBRIDS
