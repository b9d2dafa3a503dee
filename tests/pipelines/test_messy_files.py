"""Real-world files of every kind of fault: each ends in a prediction or a named reason."""

import math
import zipfile

import pytest
from tiny_models import tiny_model

from hf_crystal import CrystalFeatureExtractor, CrystalPropertyPipeline


@pytest.mark.slow
def test_every_messy_file_ends_in_a_prediction_or_a_reason(data_dir, tmp_path):
    with zipfile.ZipFile(data_dir / "messy_structures.zip") as archive:
        archive.extractall(tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != "manifest.csv")
    assert len(files) == 336
    pipe = CrystalPropertyPipeline(model=tiny_model(), feature_extractor=CrystalFeatureExtractor())
    results = pipe(files, batch_size=8)
    errors = [result["error"] for result in results if "error" in result]
    values = [result["formation_energy"] for result in results if "error" not in result]
    assert len(errors) + len(values) == 336
    assert len(values) > 200
    assert all(math.isfinite(value) for value in values)
    assert all(len(error) > 10 and "\n" not in error for error in errors)
