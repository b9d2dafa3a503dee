"""`torch.export` and ONNX: any number of crystals and atoms, the values of the model itself."""

import numpy as np
import pytest
import torch
from tiny_models import IRON, NACL, SRTIO3, tiny_model
from torch.export import Dim

import hf_crystal

SKEWED = {  # one atom far outside of a long, oblique cell
    "lattice": [[3.1, 0, 0], [1.4, 9.0, 0], [-2.2, 3.9, 5.2]],
    "frac_coords": [[0.1, 0.2, 0.3], [4.6, -7.3, 0.8], [0.5, 0.5, 0.9]],
    "atomic_numbers": [14, 8, 8],
}
KINDS = [
    ("crystalformer", {}),
    ("crystalformer", {"domain": "multihead"}),
    ("crystalformer", {"decay": ["vdw", "yukawa"]}),
    ("crystalformer", {"domain": "multihead", "routing": "learned"}),
    ("crystalframer", {}),
    ("crystalframer", {"frame_method": "weighted_pca"}),
]


def batch_of(*crystals):
    return dict(hf_crystal.CrystalFeatureExtractor()(list(crystals)))


@pytest.mark.parametrize(("kind", "changes"), KINDS, ids=str)
@pytest.mark.parametrize("crystals", [[NACL], [SRTIO3, SKEWED, IRON], [SKEWED]], ids=len)
def test_what_is_exported_computes_the_same(monkeypatch, kind, changes, crystals):
    model = tiny_model(kind, **changes).double().eval()
    batch = batch_of(*crystals)
    batch |= {name: batch[name].double() for name in ("positions", "cell")}
    with torch.no_grad():
        expected = model(**batch)
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        found = model(**batch)
    # directions of frames that are equal to 1e-10 are merged in the model itself
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter and its dependencies
@pytest.mark.parametrize("kind", ["crystalformer", "crystalframer"])
def test_exported_once_for_any_number_of_crystals_and_atoms(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny_model(kind, num_hidden_layers=1).eval()
    crystals, atoms = Dim("crystals", min=1, max=4096), Dim("atoms", min=1, max=4096)
    padded = {0: crystals, 1: atoms}
    shapes = {"atomic_numbers": padded, "positions": padded, "cell": {0: crystals}, "attention_mask": padded}
    batch = batch_of(SRTIO3, NACL)
    exported = torch.export.export(model, args=(), kwargs=batch, dynamic_shapes=shapes, strict=False)
    program = torch.onnx.export(exported, kwargs=batch, dynamo=True, output_names=["logits", "pooler_output"])
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for other in ([NACL], [SKEWED, SRTIO3, IRON], [IRON]):
        inputs = batch_of(*other)
        with torch.no_grad():
            expected = model(**inputs).logits
            torch.testing.assert_close(exported.module()(**inputs)["logits"], expected, rtol=1e-5, atol=1e-5)
        (found,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
