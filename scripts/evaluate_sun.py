r"""S.U.N. and M.S.U.N. of unprompted crystals by an interatomic potential, as drawn and as `likely_stable` picks them.

    pip install --no-deps --target chgnet_site chgnet==0.4.2 nvidia-ml-py3     # leaves the installed stack as it is
    PYTHONPATH=chgnet_site python scripts/evaluate_sun.py runs/sun --count 500

Draws 4 COUNT crystals of the embedded generator without a prompt, and judges the first COUNT of them, the COUNT that
`hf_crystal.candidates.likely_stable` picks of all before anything is relaxed, and of those that SMACT accepts. Known
is what is in the embedded
index of the Materials Project (132,734 crystals), more than the generator was trained on. What is novel is relaxed
with the potential (atoms and cell, at most `--max-steps`), and so are the known phases of its hull; one that does not
converge has no distance. Known crystals and repeats can be no part of S.U.N. and are not relaxed.
Every relaxation is a line of OUTPUT_DIR/relaxed.jsonl; the same command resumes. Writes OUTPUT_DIR/result.json.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

KINDS = ("one of 4", "one of 4, SMACT", "as drawn")


def relaxed_lines(results: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Of each crystal its `e_above_hull` and relaxed structure, from the file or relaxed now and appended to it."""
    from hf_crystal.ase import load_calculator
    from hf_crystal.candidates import RelaxedHull, equal_known, group_candidates, relax_candidates

    path, phases = args.output_dir / "relaxed.jsonl", args.output_dir / "phases.json"
    earlier = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {line["place"]: line for line in earlier}
    calculator = load_calculator(args.calculator)
    options = {"max_steps": args.max_steps}
    energies = json.loads(phases.read_text()) if phases.exists() else {}
    hull = RelaxedHull(calculator, energies=energies, **options)
    distinct = {id(result["structure"]) for result in group_candidates(results)}
    lines = []
    with path.open("a", encoding="utf-8") as file:
        for result in results:
            line = {name: result[name] for name in ("place", "sequence", "formula")} | {"e_above_hull": None}
            is_repeat = id(result["structure"]) not in distinct
            if not is_repeat and result["place"] in known:  # and novel: only what was relaxed is in the file
                line = known[result["place"]]
            elif is_repeat or equal_known(result) is not None:
                line |= {"structure": result["structure"].as_dict(), "converged": None, "warnings": []}
            else:
                (relaxed,) = relax_candidates([result], calculator, **options)
                if relaxed["converged"]:
                    (relaxed,) = hull.judge([relaxed])
                line |= {name: relaxed.get(name) for name in ("e_above_hull", "num_steps", "converged", "warnings")}
                line["structure"] = relaxed["structure"].as_dict()
                file.write(json.dumps(line) + "\n")
                file.flush()
                phases.write_text(json.dumps(energies))
            lines.append(line)
            print(f"{len(lines)} of {len(results)}: {line['formula']} {line['e_above_hull']}", flush=True)
    return lines


def figures(results: list[dict[str, Any]], lines: list[dict[str, Any]], energies_by: str) -> dict[str, Any]:
    """S.U.N., validity and diversity."""
    from pymatgen.core import Structure

    from hf_crystal.evaluation import sun
    from hf_crystal.evaluation.valid_crystals import validity
    from hf_crystal.prototypes import embedded_index

    structures = [Structure.from_dict(line["structure"]) for line in lines]
    distances = [line["e_above_hull"] for line in lines]
    judged = sun(structures, distances, embedded_index("mp"), energies_by=energies_by)
    valid = validity([result["structure"] for result in results]).to_dict()
    relaxed = [line for line in lines if line["converged"] is not None]
    return {
        "sun": judged.to_dict(),
        "validity": {name: value for name, value in valid.items() if name != "crystals"},
        "relaxed": len(relaxed),
        "converged": sum(line["converged"] for line in relaxed),
        "converged_without_distance": sum(line["converged"] and line["e_above_hull"] is None for line in relaxed),
        "chemical_systems": len({structure.chemical_system for structure in structures}),
        "formulas": len({structure.reduced_formula for structure in structures}),
        "space_groups": len({result["space_group"] for result in results}),
        "elements_per_crystal": sum(len(structure.elements) for structure in structures) / len(structures),
    }


def main(args: argparse.Namespace) -> None:
    """Draw, relax, judge."""
    from transformers import pipeline

    import hf_crystal  # noqa: F401  registers the pipeline
    from hf_crystal.candidates import DRAWS, likely_stable
    from hf_crystal.mat2seq.validity import smact_accepts

    args.output_dir.mkdir(parents=True, exist_ok=True)
    generate = pipeline("crystal-generation")
    results = generate(num_return_sequences=DRAWS * args.count, seed=args.seed, candidates="model", rank=False)
    results = [{**result, "place": place} for place, result in enumerate(results)]
    neutral = [
        result
        for result in results
        if smact_accepts(tuple(sorted(Counter(result["structure"].atomic_numbers).items())))
    ]
    chosen = {
        KINDS[0]: likely_stable(results, args.count, known=False),
        KINDS[1]: likely_stable(neutral, args.count, known=False),
        KINDS[2]: results[: args.count],
    }
    name = f"{args.calculator}, atoms and cell relaxed, at most {args.max_steps} steps, hull of phases relaxed alike"
    found = {kind: figures(chosen[kind], relaxed_lines(chosen[kind], args), name) for kind in args.kinds or chosen}
    (args.output_dir / "result.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="folder of relaxations and result; resumed where there is one")
    parser.add_argument("--count", type=int, default=500, help="crystals judged of each kind (default: 500)")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, help="what to judge (default: all)")
    parser.add_argument("--calculator", default="chgnet", help="see hf_crystal.ase.load_calculator (default: chgnet)")
    parser.add_argument("--max-steps", type=int, default=200, help="steps of a relaxation at most (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    main(parser.parse_args())
