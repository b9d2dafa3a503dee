"""Program that loads an exported folder where this package is not installed; run by `export_pretrained`.

`python -P export_check.py FOLDER INPUTS.json OUTPUTS.safetensors THREADS` hides `hf_crystal` and everything else that
an exported folder must do without, loads the folder with `trust_remote_code=True` through the Auto classes and the
pipeline, and writes what they compute. It imports nothing of this package.
"""

import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# this package, and its dependencies beyond torch, transformers, safetensors and numpy
HIDDEN = ("hf_crystal", "pymatgen", "monty", "ase", "moyopy", "spglib", "datasets", "accelerate", "pandas", "scipy")


class _HidingFinder:
    """A module finder that does not see the hidden packages, as if they were not installed."""

    def __init__(self, finder: Any):
        self.finder = finder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in HIDDEN:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:  # find_distributions and the like
        return getattr(self.finder, name)


def main(folder: str, inputs: str, outputs: str, threads: str) -> None:
    """Load `folder` and write the outputs for the crystals in `inputs`."""
    sys.meta_path[:] = [_HidingFinder(finder) for finder in sys.meta_path]
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoFeatureExtractor, AutoModel, AutoModelForSequenceClassification

    torch.set_num_threads(int(threads))  # sums in the same order as in the calling process
    with open(inputs, encoding="utf-8") as file:
        crystals = json.load(file)
    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
    encoder = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    build_pipeline: Any = transformers.pipeline  # its annotations list the tasks of transformers only
    pipe = build_pipeline("crystal-property-prediction", model=folder, trust_remote_code=True, device="cpu")
    batch = extractor(crystals)
    with torch.no_grad():
        results = {"logits": model(**batch).logits, "pooler_output": encoder(**batch).pooler_output}
    predictions = pipe(crystals, batch_size=len(crystals))
    results["pipeline"] = torch.tensor(
        [[row[name] for name in model.config.target_names] for row in predictions], dtype=torch.float64
    )
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, outputs)
    loaded = sorted({name.partition(".")[0] for name in sys.modules} & set(HIDDEN))
    if loaded:
        raise SystemExit(f"packages that should be hidden were imported: {loaded}")


if __name__ == "__main__":
    main(*sys.argv[1:])
