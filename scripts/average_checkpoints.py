"""Mean of the weights of two parts of one training, written into the later one: wider minima, no cost when predicting.

    python scripts/average_checkpoints.py earlier/model.safetensors later/model.safetensors --share 0.65

`--share` is that of the later one. The error head stays the later one's: fit it again (`fit_error_heads.py`).
"""

import argparse
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earlier", type=Path)
    parser.add_argument("later", type=Path, help="changed in place")
    parser.add_argument("--share", type=float, default=0.65)
    given = parser.parse_args()
    first, second = load_file(given.earlier), load_file(given.later)
    with safe_open(given.later, "pt") as file:
        metadata = file.metadata()
    for name, weight in second.items():
        if not name.startswith("error_head") and weight.dtype.is_floating_point:
            second[name] = (1 - given.share) * first[name] + given.share * weight
    save_file(second, given.later, metadata=metadata)


if __name__ == "__main__":
    main()
