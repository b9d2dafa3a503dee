"""Python that does what the page was asked to do, to be copied."""

from collections.abc import Mapping

from ..checkpoints import DEFAULT_GENERATOR, DEFAULT_MODEL
from ..loading import resolve_model

__all__ = ["generation_code", "inside_code", "prediction_code"]

_PIPELINE = "import hf_crystal\nfrom transformers import pipeline\n\n"


def _model(name: str, default: str) -> str:
    """Argument of `pipeline` for a model that is not the default."""
    if name == default:
        return ""
    embedded = resolve_model(name) != name
    return f", model={f'str(hf_crystal.embedded_checkpoint({name!r}))' if embedded else repr(name)}"


def prediction_code(model: str) -> str:
    """Predict the properties of one's own file with the same model."""
    chosen = _model(model, DEFAULT_MODEL)
    return f'{_PIPELINE}predict = pipeline("crystal-property-prediction"{chosen})\nprint(predict("my_crystal.cif"))'


def generation_code(
    model: str,
    composition: str,
    *,
    space_group: str | None = None,
    properties: Mapping[str, float] | None = None,
    num: int = 4,
    temperature: float = 1.0,
    seed: int | None = None,
) -> str:
    """Generate the same crystals."""
    words = [repr(composition.strip())] if composition.strip() else []
    words += [f"space_group={space_group!r}"] if space_group else []
    words += [f"properties={dict(properties)!r}"] if properties else []
    words += [f"num_return_sequences={num}", f"temperature={temperature:g}"]
    words += [] if seed is None else [f"seed={seed}"]
    chosen = _model(model, DEFAULT_GENERATOR)
    words += [] if chosen else ["candidates='auto'"]
    return (
        f'{_PIPELINE}generate = pipeline("crystal-generation"{chosen})\ncrystals = generate({", ".join(words)})\n'
        'print(crystals[0]["cif"])'
    )


def inside_code(model: str, atom: int = 0, head: int | None = None) -> str:
    """Draw the same attention, and the sequence."""
    looking = "" if head is None else f", head={head}"
    return (
        "from hf_crystal.viz import plot_attention, plot_sequence\n\n"
        f'plot_attention("my_crystal.cif", {model!r}, atom={atom}{looking}).savefig("attention.png")\n'
        'plot_sequence("my_crystal.cif").savefig("sequence.png")'
    )
