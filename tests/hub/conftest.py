"""A Hub on this machine, and small exported folders."""

import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest
from hub_exports import METRICS, save_tiny_generator
from hub_server import HubServer
from tiny_models import WITH_ERROR_HEAD, save_tiny_model

from hf_crystal import export_pretrained


@pytest.fixture(scope="session")
def exported_property(tmp_path_factory) -> Path:
    """Export of a small CrystalFramer with evaluation figures."""
    import json

    root = tmp_path_factory.mktemp("property")
    source = save_tiny_model(root / "source", "crystalframer", **WITH_ERROR_HEAD)
    (source / "metrics.json").write_text(json.dumps(METRICS))
    description = {"title": "Tiny framer", "dataset": "three crystals", "license": "cc-by-4.0"}
    return export_pretrained(source, root / "exported", hub_config=description)


@pytest.fixture(scope="session")
def exported_generator(tmp_path_factory) -> Path:
    """Export of a small random generator with evaluation figures."""
    root = tmp_path_factory.mktemp("generator")
    source = save_tiny_generator(root / "source")
    return export_pretrained(source, root / "exported", hub_config={"title": "Tiny generator"})


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubServer]:
    """A running Hub; uploads use the plain protocol, and nothing waits between attempts."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # this Hub needs no network
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
