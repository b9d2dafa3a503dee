"""Fixtures shared by the whole suite."""

import os
from pathlib import Path

import pytest


def find_shared() -> Path | None:
    """Folder with reference fixtures and data: `$HF_CRYSTAL_SHARED` or `../shared` beside the checkout."""
    configured = os.environ.get("HF_CRYSTAL_SHARED")
    folder = Path(configured) if configured else Path(__file__).resolve().parents[2] / "shared"
    return folder if (folder / "fixtures").is_dir() else None


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The shared folder; skips where it is absent, fails where CI demands it."""
    folder = find_shared()
    if folder is None:
        message = "reference data not found: set HF_CRYSTAL_SHARED or place it at ../shared"
        if os.environ.get("HF_CRYSTAL_REQUIRE_SHARED") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def fixtures_dir(shared_dir: Path) -> Path:
    """Reference inputs and outputs of the official encoders."""
    return shared_dir / "fixtures"


@pytest.fixture(scope="session")
def data_dir(shared_dir: Path) -> Path:
    """Real data sets."""
    return shared_dir / "data"
