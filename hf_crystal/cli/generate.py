"""`hf-crystal generate`: crystals of a composition."""

import sys
from typing import Annotated, Any, Literal

import typer

from ..checkpoints import DEFAULT_GENERATOR
from .options import (
    ChemicalSystem,
    Composition,
    CrystalFolder,
    CrystalForm,
    DeviceName,
    GeneratorName,
    ListFormat,
    Novel,
    OutputFile,
    Seed,
    Smact,
    SpaceGroups,
    numbers_or_symbols,
)
from .progress import counter, quiet_transformers
from .relaxation import CalculatorName, KeepSymmetry, MaxSteps, Relax, chosen_calculator, relax_with
from .screening import Unseen
from .structure_files import crystal_files, folder_in_use, write_crystals
from .writers import chosen_format

EXAMPLE = (
    "Example: hf-crystal generate TiO2 --num 5 --output-dir output\n\n"
    "With predictions: hf-crystal generate TiO2 --num 5 --output json | hf-crystal predict -\n\n"
    "Of the language model, five atoms: hf-crystal generate SrTiO3 --candidates model --num 4"
)


FormulaUnits = Annotated[
    list[str] | None,
    typer.Option(help="Take the composition as a formula unit, so many in the cell; may be repeated; or any."),
]
CellParameters = Annotated[
    list[str] | None, typer.Option(help="Cell parameter a=4.6 or a=4.5..4.7 (Å, degrees); may be repeated.")
]
Sites = Annotated[
    list[str] | None, typer.Option(help="Site that occurs, such as 'Ti 2a' or 'O 4f 0.305'; may be repeated.")
]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 for greedy decoding, the likeliest token at each step.")]
NumBeams = Annotated[int, typer.Option(min=1, help="Above 1: beam search in place of sampling.")]
Guidance = Annotated[float, typer.Option(help="Above 1: properties asked for weigh more, at twice the time.")]
MaxAtoms = Annotated[
    int | None, typer.Option(help="Largest primitive cell; of the model 20 where no composition is given.")
]
MinDistance = Annotated[float | None, typer.Option(help="Leave out crystals with atoms closer than this, Å.")]
UnseenElements = Annotated[
    Unseen, typer.Option(help="Elements, or two elements together, that no training crystal has: warn or refuse.")
]
Candidates = Annotated[
    Literal["auto", "prototypes", "model"] | None,
    typer.Option(
        help="prototypes: known crystals of the formula with any number of formula units, and known prototypes "
        "with its elements; model: of the language model, the formula counts the atoms of the primitive cell; "
        "auto, the default for a formula and a space group: prototypes, then the model."
    ),
]
Stability = Annotated[
    bool,
    typer.Option(
        "--stability",
        help="Add how far each crystal is above the hull of known phases: by --calculator with --relax, else by "
        "the energy that a model predicts for the unrelaxed crystal.",
    ),
]
# options that ask for the language model where they are not these
_USUAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "num_beams": 1,
    "guidance": 1.0,
    "smact": False,
    "unseen": "warn",
    "known": True,
    "stability": False,
}


def _properties(given: list[str]) -> dict[str, float] | None:
    """`name=value` words as a mapping."""
    found: dict[str, float] = {}
    for word in given:
        name, separator, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            separator = ""
        if not separator or not name:
            raise typer.BadParameter(f"{word}: expected name=value with a number", param_hint="--property")
    return found or None


def _cell(given: list[str]) -> dict[str, tuple[float, float]] | None:
    """`a=4.6` and `a=4.5..4.7` as a mapping of smallest and largest values."""
    found: dict[str, tuple[float, float]] = {}
    for word in given:
        name, _, value = word.partition("=")
        low, _, high = value.partition("..")
        try:
            found[name] = (float(low), float(high or low))
        except ValueError as error:
            message = f"{word}: expected name=value or name=low..high with numbers"
            raise typer.BadParameter(message, param_hint="--cell") from error
    return found or None


def _formula_units(given: list[str]) -> list[int] | str | None:
    """Numbers, or the word `any`."""
    if given == ["any"]:
        return "any"
    if not all(word.isdecimal() for word in given):
        raise typer.BadParameter(f"{' '.join(given)}: expected whole numbers or any", param_hint="--formula-units")
    return [int(word) for word in given] or None


def _one_composition(word: str | None, option: str | None) -> str | None:
    """The composition, however it was given."""
    if word is not None and option is not None and word != option:
        raise typer.BadParameter(
            f"{option}, and {word} without the option; give one of the two", param_hint="--composition"
        )
    return word if option is None else option


def _words_of(limits: dict[str, Any]) -> str:
    """Options as they were given."""
    return ", ".join(f"--{name}" + f" {value}" * (value is not True) for name, value in limits.items() if value)


def _check_results(
    results: list[dict[str, Any]], composition: str | None, limits: dict[str, Any], candidates: str | None
) -> None:
    """Raise the reason where there is no crystal."""
    from ..candidates import nothing_found

    if not results:
        raise ValueError(nothing_found(composition, candidates, _words_of(limits)))
    if "error" in results[0]:
        raise ValueError(results[0]["error"])


def generate(
    composition: Composition = None,
    composition_option: Annotated[str | None, typer.Option("--composition", help="The same as an option.")] = None,
    formula_units: FormulaUnits = None,
    space_group: SpaceGroups = None,
    chemical_system: ChemicalSystem = None,
    properties: Annotated[
        list[str] | None, typer.Option("--property", help="Condition name=value; may be repeated.")
    ] = None,
    cell: CellParameters = None,
    site: Sites = None,
    prompt: Annotated[str | None, typer.Option(help="Beginning of a sequence to be continued.")] = None,
    num: Annotated[int, typer.Option(help="Number of crystals.")] = 1,
    output_dir: CrystalFolder = None,
    form: CrystalForm = "cif",
    output: ListFormat = None,
    output_file: OutputFile = None,
    seed: Seed = None,
    temperature: Temperature = 1.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling.")] = 1.0,
    num_beams: NumBeams = 1,
    guidance: Guidance = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences generated at a time.")] = 256,
    max_atoms: MaxAtoms = None,
    min_distance: MinDistance = None,
    smact: Smact = False,
    unseen: UnseenElements = "warn",
    candidates: Candidates = None,
    novel: Novel = False,
    stability: Stability = False,
    relax: Relax = False,
    calculator: CalculatorName = "chgnet",
    keep_symmetry: KeepSymmetry = False,
    max_steps: MaxSteps = 500,
    model: GeneratorName = DEFAULT_GENERATOR,
    device: DeviceName = None,
) -> None:
    """Generate crystals, the likeliest first; no two have the same sequence.

    A formula gives known crystals, lowest energy first, then known prototypes with its elements, then what a language
    model writes (column source). Conditions, parts of the crystal, options of sampling and --formula-units ask the
    model alone; then a composition without --formula-units counts the atoms of the primitive cell. Where the model
    repeats itself there may be fewer than asked for; exit code 1 if there is none.
    """
    if num < 1:
        raise typer.BadParameter(f"{num} is not positive", param_hint="--num")
    composition = _one_composition(composition, composition_option)
    chosen = chosen_format(output, output_file)
    asked: dict[str, Any] = {
        "formula_units": _formula_units(formula_units or []),
        "space_group": numbers_or_symbols(space_group),
        "chemical_system": chemical_system,
        "properties": _properties(properties or []),
        "cell": _cell(cell or []),
        "sites": site or None,
        "prompt": prompt,
    }
    others = crystal_files(output_dir) if output_dir is not None else []
    if output_dir is not None and others and (seed is None or len({path.stem for path in others}) > num):
        raise folder_in_use(output_dir, others)  # before anything is sampled
    quiet_transformers()
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "num_beams": num_beams,
        "guidance": guidance,
        "smact": smact,
        "unseen": unseen,
        "known": not novel,
        "stability": stability and not relax,
    }
    changed = {name: value for name, value in options.items() if value != _USUAL[name]}
    from ..loading import load_generation_pipeline

    potential = chosen_calculator(relax, calculator)  # before anything is sampled
    pipe = load_generation_pipeline(model, device)
    with counter(num, "crystal") as tell:
        results = pipe(
            composition,
            **asked,
            **changed,
            candidates=candidates,
            num_return_sequences=num,
            seed=seed,
            batch_size=batch_size,
            max_atoms=max_atoms,
            min_distance=min_distance,
            progress=tell,
        )
    limits: dict[str, Any] = {"max-atoms": max_atoms, "min-distance": min_distance, "smact": smact, "novel": novel}
    limits |= {"space-group": " or ".join(space_group or ()), "unseen": changed.get("unseen")}
    alone = any(value for name, value in asked.items() if name != "space_group")
    _check_results(results, composition, limits, candidates or ("model" if alone else None))
    if len(results) < num:
        passing = f" and pass {_words_of(limits)}" * any(limits.values())
        reason = f"no more were found that differ{passing} and do not collide"
        print(f"hf-crystal: {len(results)} of {num} crystals: {reason}", file=sys.stderr)
    if potential is not None:
        results = relax_with(potential, results, stability, keep_symmetry=keep_symmetry, max_steps=max_steps)
    write_crystals(results, chosen, output_file, output_dir, form, novel=novel)
