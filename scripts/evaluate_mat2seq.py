r"""Everything that is measured of a generator, as one JSON: `hf-crystal evaluate generation` as a script.

    OMP_NUM_THREADS=1 python scripts/evaluate_mat2seq.py --model runs/mat2seq/model --data mp_20.parquet \
        --output-dir runs/mat2seq/evaluation --judge crystalformer-mp20

Match rate and RMSE at n = 1 and 20 (DiffCSP protocol, StructureMatcher with ltol 0.3, stol 0.5, angle_tol 10), METRe
and cRMSE, validity, space groups as moyopy finds them; of crystals generated from nothing uniqueness, novelty against
the training split, and distances of distributions; and whether conditions steer, judged by a property model. Samples
are written prompt by prompt: the same command goes on where it was stopped. Results: OUTPUT_DIR/evaluation.json.
"""

import sys

from hf_crystal.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["evaluate", "generation", *sys.argv[1:]]))
