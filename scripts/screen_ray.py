"""Screen crystals on many machines: Ray Data hands out the shards of `hf-crystal predict --output-dir`.

Each worker process loads the model once and predicts one shard after the other. Shards are files with a mark of
success (see `hf_crystal/cli/screening.py`), so nothing is lost and nothing comes twice: a shard whose worker dies is
given to another one, which goes on after the last complete file; and the same command again, after the whole cluster
died, does only what is missing. Files and output folder must be reachable under the same names from all machines.

    pip install ".[ray]"
    python scripts/screen_ray.py table.parquet --output-dir results --num-shards 64 --workers 8

On a cluster set RAY_ADDRESS=auto; `--gpus-per-worker 1` gives each worker a GPU. The results are read as one table:
`pandas.read_parquet("results")`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any


class ShardPredictor:
    """One worker process: a model, applied to one shard after the other."""

    def __init__(self, sources: list[str], output_dir: str, num_shards: int, rows_per_file: int, model: str):
        from hf_crystal.loading import load_property_pipeline

        self.sources = sources
        self.output_dir = Path(output_dir)
        self.num_shards = num_shards
        self.rows_per_file = rows_per_file
        self.model = model
        self.pipe = load_property_pipeline(model)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict the shard `row["shard"]`; adds how many crystals were read and could not be read in this run."""
        from hf_crystal.cli.screening import Shard, Tally

        shard = Shard(self.sources, self.output_dir, self.num_shards, int(row["shard"]), self.rows_per_file)
        tally = Tally("report")
        shard.begin(self.model, "report")
        if not shard.is_complete:
            shard.predict(self.pipe, tally, batch_size=64)
        return {**row, "read": tally.read, "failed": tally.failed}


def main(args: argparse.Namespace) -> int:
    """Hand out the shards that are not complete; print a line for each."""
    import ray

    from hf_crystal.cli.screening import Shard
    from hf_crystal.cli.sources import find_sources

    sources = [str(Path(source).resolve()) for source in find_sources(args.files)]
    output_dir = args.output_dir.resolve()
    shards = [
        Shard(sources, output_dir, args.num_shards, index, args.rows_per_file) for index in range(args.num_shards)
    ]
    missing = [{"shard": shard.shard_index} for shard in shards if not shard.is_complete]
    print(f"{args.num_shards - len(missing)} of {args.num_shards} shards are complete already", flush=True)
    if not missing:
        return 0
    ray.init(log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    # one block per shard: what Ray hands out, and gives to another worker when one dies
    results = ray.data.from_items(missing, override_num_blocks=len(missing)).map(
        ShardPredictor,
        fn_constructor_args=(sources, str(output_dir), args.num_shards, args.rows_per_file, args.model),
        # one shard at a time, so that none waits behind a long one
        compute=ray.data.ActorPoolStrategy(size=args.workers, max_tasks_in_flight_per_actor=1),
        num_cpus=1,
        num_gpus=args.gpus_per_worker or None,
    )
    for row in results.iter_rows():
        print(f"shard {row['shard']}: {row['read']} crystals read, {row['failed']} unreadable", flush=True)
    incomplete = [shard.shard_index for shard in shards if not shard.is_complete]
    if incomplete:
        print(f"shards {incomplete} are not complete; run the same command again", file=sys.stderr)
    return 1 if incomplete else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files, globs, folders, as of `hf-crystal predict`")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--num-shards", type=int, required=True, help="several per worker even out their loads")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--rows-per-file", type=int, default=10_000)
    parser.add_argument("--model", default="crystalformer-mp20")
    parser.add_argument("--gpus-per-worker", type=float, default=0)
    sys.exit(main(parser.parse_args()))
