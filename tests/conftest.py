"""Fixtures shared by the whole suite."""

import os
from pathlib import Path

import numpy as np
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


SPLIT_SIZES = {"train": 42, "val": 11, "test": 13}


def crystal_rows(split: str, count: int, generator: np.random.Generator) -> list[dict]:
    """Cells of 1 to 4 well-separated atoms with two learnable labels, the second unknown for a third."""
    rows = []
    for index in range(count):
        num_atoms = int(generator.integers(1, 5))
        edges = generator.uniform(4.0, 6.0, 3)
        lattice = np.diag(edges) + generator.uniform(-0.3, 0.3, (3, 3))
        corners = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])[:num_atoms]
        numbers = generator.integers(3, 30, num_atoms)
        density = num_atoms / np.prod(edges)
        rows.append(
            {
                "material_id": f"{split}-{index}",
                "split": split,
                "lattice": lattice.reshape(-1).tolist(),
                "frac_coords": (corners + generator.uniform(-0.02, 0.02, corners.shape)).reshape(-1).tolist(),
                "atomic_numbers": numbers.tolist(),
                "energy": float(numbers.mean() / 10 + 40 * density),
                "gap": None if index % 3 == 1 else float(numbers.max() / 5),
            }
        )
    return rows


@pytest.fixture(scope="session")
def crystal_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet file with the columns of the real data sets."""
    import pyarrow
    from pyarrow import parquet

    generator = np.random.default_rng(0)
    rows = [row for split, count in SPLIT_SIZES.items() for row in crystal_rows(split, count, generator)]
    path = tmp_path_factory.mktemp("table") / "crystals.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path
