"""Program that loads an exported folder where this package is not installed; run by `export_pretrained`.

`python -P export_check.py property|generator FOLDER INPUTS OUTPUTS THREADS` hides `hf_crystal` and everything else
that an exported folder must do without, loads the folder through the Auto classes, and writes what they compute. It
imports nothing of this package.
"""

import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# what reading crystals into sequences, and sequences into pymatgen structures, needs
STRUCTURE_PACKAGES = ("gemmi", "pymatgen", "monty", "moyopy", "spglib", "pandas", "scipy")
# this package, and its dependencies beyond torch, transformers, safetensors and numpy; older releases of transformers
# import sklearn where it is installed, which fails without scipy
HIDDEN = ("hf_crystal", "ase", "datasets", "accelerate", "sklearn", *STRUCTURE_PACKAGES)


class _HidingFinder:
    """A module finder that does not see the hidden packages, as if they were not installed."""

    def __init__(self, finder: Any, hidden: Sequence[str] = HIDDEN):
        self.finder = finder
        self.hidden = hidden

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for a hidden package, otherwise what the wrapped finder finds."""
        if name.partition(".")[0] in self.hidden:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:  # find_distributions and the like
        return getattr(self.finder, name)


def hide() -> None:
    """Hide every package of `HIDDEN`."""
    sys.meta_path[:] = [_HidingFinder(finder) for finder in sys.meta_path]


def show_structure_packages() -> None:
    """Let the packages that read and write crystals be seen again."""
    for finder in sys.meta_path:
        if isinstance(finder, _HidingFinder):
            finder.hidden = [name for name in finder.hidden if name not in STRUCTURE_PACKAGES]


def check_nothing_hidden_was_imported(hidden: Sequence[str] = HIDDEN) -> None:
    """Exit with a message if a hidden package has been imported all the same."""
    loaded = sorted({name.partition(".")[0] for name in sys.modules} & set(hidden))
    if loaded:
        raise SystemExit(f"packages that should be hidden were imported: {loaded}")


def check_property(folder: str, crystals: list[dict[str, Any]], outputs: str) -> None:
    """Outputs of encoder, property head and pipeline, with remote code, as safetensors."""
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoFeatureExtractor, AutoModel, AutoModelForSequenceClassification

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
    check_nothing_hidden_was_imported()


def check_generator(folder: str, asked: dict[str, Any], outputs: str) -> None:
    """Logits and tokens of the stock classes; tokens of crystals and generation by the traveling code, as JSON."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stock = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype="auto").eval()
    reader = AutoTokenizer.from_pretrained(f"{folder}/tokenizer_without_code", trust_remote_code=False)
    for part in (stock, reader):
        if not type(part).__module__.startswith("transformers."):
            raise SystemExit(f"without remote code {type(part).__module__} is used")
    with torch.no_grad():
        logits = [stock(input_ids=torch.tensor([row])).logits[0].float().tolist() for row in asked["ids"]]
    results = {
        "logits": logits,
        "texts": [reader.decode(row, skip_special_tokens=True) for row in asked["ids"]],
        "ids of sequence text": [reader(text)["input_ids"] for text in asked["texts"]],
        "ids of a prompt": reader(asked["prompt"], add_special_tokens=False)["input_ids"],
    }
    check_nothing_hidden_was_imported()

    show_structure_packages()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    results["ids of crystals"] = [tokenizer.encode(crystal) for crystal in asked["crystals"]]
    crystals = model.generate_crystals(tokenizer, **asked["generation"])
    results["generated sequences"] = [crystal.sequence for crystal in crystals]
    results["generated lattices"] = [crystal.structure.lattice.matrix.tolist() for crystal in crystals]
    with open(outputs, "w", encoding="utf-8") as file:
        json.dump(results, file)
    check_nothing_hidden_was_imported([name for name in HIDDEN if name not in STRUCTURE_PACKAGES])


def main(kind: str, folder: str, inputs: str, outputs: str, threads: str) -> None:
    """Load `folder` and write the outputs for `inputs`."""
    hide()
    import torch

    torch.set_num_threads(int(threads))  # sums in the same order as in the calling process
    with open(inputs, encoding="utf-8") as file:
        asked = json.load(file)
    check = check_property if kind == "property" else check_generator
    check(folder, asked, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
