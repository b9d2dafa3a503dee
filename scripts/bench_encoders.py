"""What the encoders cost on a CPU, and what exact treatment of tied frames adds.

Question: process CPU time per crystal of a forward pass and of forward + backward, for Crystalformer and for
CrystalFramer (max frames), with one random frame per atom and head (training) and with the mean over tied frames
(evaluation). Held fixed: published sizes (4 blocks of width 128, 8 heads, K = 64, D = 64), batches of 128 random
crystals of a table, float32, cut-off 4.5 sigma. The product of two 512 x 512 float32 matrices, timed in the same run,
is the unit that makes machines comparable.

    OMP_NUM_THREADS=1 python scripts/bench_encoders.py --data mp_20.parquet

The last line of the output is JSON.
"""

import argparse
import json
import resource
import sys
import time


def median_ms(function, repeats: int) -> tuple[float, float]:
    """Median and interquartile range of the process CPU time of calls, ms, after one warm-up."""
    import numpy as np

    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(1000 * (time.process_time() - start))
    low, middle, high = np.percentile(times, [25, 50, 75])
    return float(middle), float(high - low)


def load_batch(path: str, count: int, seed: int):
    """One padded batch of random crystals of a table."""
    import numpy as np
    import pandas as pd
    import torch

    from hf_crystal.testing import Crystal, collate

    table = pd.read_parquet(path, columns=["lattice", "frac_coords", "atomic_numbers"]).sample(
        count, random_state=seed
    )
    crystals = []
    for row in table.itertuples():
        cell = np.array(row.lattice, dtype=float).reshape(3, 3)
        fractional = np.array(row.frac_coords, dtype=float).reshape(-1, 3)
        crystals.append(Crystal(np.array(row.atomic_numbers), fractional @ cell, cell))
    return collate(crystals, dtype=torch.float32)


def main(args: argparse.Namespace) -> int:
    """Print the table; the last line is JSON."""
    import torch

    from hf_crystal import CrystalformerConfig, CrystalFramerConfig
    from hf_crystal.models.modeling_crystalformer import CrystalformerForPropertyPrediction
    from hf_crystal.models.modeling_crystalframer import CrystalFramerForPropertyPrediction

    batch = load_batch(args.data, args.num_crystals, args.seed)
    matrix = torch.randn(512, 512)
    unit = median_ms(lambda: [matrix @ matrix for _ in range(20)], args.repeats)[0] / 20
    labels = torch.randn(args.num_crystals, 1)
    figures = {}

    def note(name: str, function) -> None:
        middle, spread = median_ms(function, args.repeats)
        figures[name] = {"ms_per_crystal": middle / args.num_crystals, "iqr": spread / args.num_crystals}
        print(
            f"{name:45s} {figures[name]['ms_per_crystal']:7.2f} ms/crystal (IQR {figures[name]['iqr']:.2f}), "
            f"{figures[name]['ms_per_crystal'] / unit:6.2f} products"
        )

    torch.manual_seed(args.seed)
    models = {
        "crystalformer": CrystalformerForPropertyPrediction(CrystalformerConfig()),
        "crystalframer": CrystalFramerForPropertyPrediction(CrystalFramerConfig()),
    }
    for name, model in models.items():
        model.calibrate(batch)

        def forward(model=model):
            with torch.no_grad():
                model(**batch)

        def step(model=model):
            model.zero_grad()
            model(**batch, labels=labels).loss.backward()

        model.eval()
        note(f"{name} forward, evaluation", forward)
        model.train()
        if name == "crystalframer":
            note(f"{name} forward, one random frame", forward)
        note(f"{name} forward + backward, training", step)
    ties = "crystalframer forward, evaluation", "crystalframer forward, one random frame"
    ratio = figures[ties[0]]["ms_per_crystal"] / figures[ties[1]]["ms_per_crystal"]
    print(f"exact ties cost {ratio:.2f} times one frame; 512³ product {unit:.2f} ms")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads(), "peak_mib": peak, "product_ms": unit}
    print(json.dumps({"num_crystals": args.num_crystals, **versions, "tie_ratio": ratio, "figures": figures}))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="parquet table with lattice, frac_coords, atomic_numbers")
    parser.add_argument("--num-crystals", type=int, default=128, help="crystals in the batch")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(parser.parse_args()))
