"""The web page, laid out with Gradio; everything that it shows comes from this machine."""

import functools
import math
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..crystals.record import CrystalInputError
from ..viz.style import ColorScheme
from .cards import (
    crystal_cards,
    insight_table,
    message,
    picture,
    prediction_table,
    sequence_html,
    side_by_side,
    view_html,
)
from .code import generation_code, inside_code, prediction_code
from .service import MAX_GENERATED, Service, example_files

if TYPE_CHECKING:
    import gradio

__all__ = ["build_page", "launch_page"]

_COLORS = list(get_args(ColorScheme))
_TABS = ("predict", "generate", "inside")
_FILES = [".cif", ".vasp", ".poscar", ".contcar", ".xyz", ".extxyz", ".json"]
_ANY = "any"
_CHANGES = ("rotation", "translation", "permutation", "unimodular cell", "supercell 2x1x1", "supercell 2x2x2")
_INTRODUCTION = (
    "# Crystals\nPredict properties of a crystal, generate crystals of a composition, and see what the models see. "
    "[Crystalformer](https://arxiv.org/abs/2403.11686), [CrystalFramer](https://arxiv.org/abs/2503.02209) and "
    "Mat2Seq models, small ones that run on a processor; turn crystals with the mouse, a finger or the arrow keys."
)


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the web page needs Gradio and matplotlib: pip install 'hf_crystal[app]'") from error
    return gradio


def build_page(service: Service | None = None) -> Any:
    """The page as `gradio.Blocks`; call `launch_page` to serve it.

    Args:
        service: models to use; the embedded ones by default.

    Raises:
        ImportError: Gradio is not installed.
    """
    gradio = _gradio()
    service = service or Service()
    # files that users made are deleted after an hour
    with gradio.Blocks(title="Crystals", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(_INTRODUCTION, elem_classes="hfc-text")
        with gradio.Tabs() as tabs:
            with gradio.Tab("Predict", id="predict"):
                fields = _predict_tab(gradio, service)
            with gradio.Tab("Generate", id="generate"):
                fields |= _generate_tab(gradio, service)
            with gradio.Tab("Look inside", id="inside"):
                fields |= _inside_tab(gradio, service)

        def restore(request: Any) -> list[Any]:
            """Set the fields as the address says."""
            return _restore(gradio, fields, dict(request.query_params))

        restore.__annotations__["request"] = gradio.Request  # by which Gradio knows what to pass
        page.load(restore, None, [tabs, *fields.values()], api_name=False, show_progress="hidden")
    return page


def _restore(gradio: Any, fields: Mapping[str, Any], asked: Mapping[str, str]) -> list[Any]:
    """Updates of the tabs and of all fields: what a link holds, as far as the field accepts it."""
    tab = asked.get("tab")
    if tab not in _TABS:
        return [gradio.update()] * (len(fields) + 1)
    updates = [gradio.update(selected=tab)]
    for name, field in fields.items():
        value: Any = asked.get(name.removeprefix(f"{tab}-")) if name.startswith(f"{tab}-") else None
        if value is not None and isinstance(field, gradio.Dropdown) and value not in dict(field.choices).values():
            value = None
        if value is not None and isinstance(field, gradio.Number | gradio.Slider):
            try:
                value = _number(value, name)
            except ValueError:
                value = None
        updates.append(gradio.update() if value is None else gradio.update(value=value))
    return updates


def _link(tab: str, **state: Any) -> str:
    """A link to the tab with these fields; nothing of what was uploaded or pasted is in it."""
    kept = {name: f"{value:g}" if isinstance(value, float) else value for name, value in state.items() if value != ""}
    return f"[Link to these fields](?{urllib.parse.urlencode({'tab': tab, **kept})})"


def launch_page(page: "gradio.Blocks", **options: Any) -> Any:
    """Serve the page with its style; no analytics, no share link.

    Args:
        page: what `build_page` returned.
        **options: passed to `gradio.Blocks.launch`.
    """
    gradio = _gradio()
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    # fonts of the reader's machine: Gradio's own themes may name some that are fetched
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    settings: dict[str, Any] = {
        "show_error": True,
        "footer_links": [],
        "css": css,
        "theme": theme,
        "max_file_size": "5mb",
        "_frontend": False,  # skips only a request to itself, whose 3 s end the page on a loaded machine
    }
    return page.queue(default_concurrency_limit=2).launch(**{**settings, **options})


def _sources(gradio: Any, service: Service, prefix: str, *, many: bool) -> tuple[Any, Any, Any, Any]:
    """Inputs that give a crystal: files, text, example; and the model."""
    files = gradio.File(
        label="CIF, POSCAR or extended XYZ",
        file_count="multiple" if many else "single",
        file_types=_FILES,
        elem_id=f"{prefix}-file",
        height=130,
    )
    text = gradio.Textbox(label="or paste one", lines=3, max_lines=8, elem_id=f"{prefix}-text")
    example = gradio.Dropdown(
        ["", *example_files()], value="SrTiO3", label="or choose an example", elem_id=f"{prefix}-example"
    )
    model = gradio.Dropdown(
        service.property_models, value=service.property_models[0], label="model", elem_id=f"{prefix}-model"
    )
    return files, text, example, model


def _html(gradio: Any, value: str = "", **options: Any) -> Any:
    """A place for HTML with our own style only."""
    return gradio.HTML(value, apply_default_css=False, **options)


def _fenced(code: str, link: str = "") -> str:
    return f"The same in Python:\n```python\n{code}\n```\n{link}"


def _python(gradio: Any, code: str, prefix: str) -> Any:
    """Python that does what the tab was asked to do last."""
    return gradio.Markdown(_fenced(code), elem_classes="hfc-text", elem_id=f"{prefix}-python")


def _number(value: Any, name: str) -> float:
    """What was typed into a field, `ValueError` with its name where it is no number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) < 2**53:  # beyond, doubles are no exact whole numbers
        raise ValueError(f"{name} is {'empty' if value in (None, '') else value!r}; accepted: a number")
    return number


def _as_list(files: Any) -> list[str]:
    if not files:
        return []
    return [files] if isinstance(files, str) else list(files)


# ------------------------------------------------------------------------------------------------------------ predict


def _predict_tab(gradio: Any, service: Service) -> dict[str, Any]:
    with gradio.Row():
        with gradio.Column(scale=2, min_width=280):
            files, text, example, model = _sources(gradio, service, "predict", many=True)
            button = gradio.Button("Predict", variant="primary", elem_id="predict-button")
        with gradio.Column(scale=3, min_width=280):
            table = _html(gradio, elem_id="predict-table")
            with gradio.Row():
                shown = gradio.Dropdown([], label="crystal in the picture", visible=False, elem_id="predict-shown")
                other = gradio.Dropdown([], label="compared with", visible=False, elem_id="predict-other")
                colors = gradio.Dropdown(_COLORS, label="colors", elem_id="predict-colors", min_width=120)
            view = _html(gradio, elem_id="predict-view")
            download = gradio.File(label="table as CSV", visible=False, elem_id="predict-csv", interactive=False)
    python = _python(gradio, prediction_code(service.property_models[0]), "predict")
    crystals = gradio.State({})
    button.click(
        functools.partial(_predict, gradio, service),
        [files, text, example, model, colors],
        [table, shown, other, view, download, python, crystals],
        api_name="predict",
    )
    for field in (shown, other, colors):
        field.input(
            functools.partial(_show, service),
            [shown, other, colors, crystals],
            view,
            api_name=False,
            show_progress="hidden",
        )
    return {"predict-example": example, "predict-model": model, "predict-colors": colors}


def _predict(
    gradio: Any, service: Service, files: Any, text: str, example: str, model: str, colors: ColorScheme
) -> tuple[Any, ...]:
    given = _as_list(files)
    # the example is for those who gave nothing of their own
    chosen = None if given or text.strip() else example or None
    try:
        found = service.predict(model, given, text, chosen)
    except ValueError as error:
        hidden = gradio.update(visible=False)
        return message(str(error)), hidden, hidden, "", hidden, gradio.update(), {}
    names = list(found.crystals)
    any_result = bool(found.rows or found.errors)
    return (
        prediction_table(found),
        gradio.update(choices=names, value=names[0] if names else None, visible=len(names) > 1),
        gradio.update(choices=["", *names], value="", visible=len(names) > 1),
        view_html(found.crystals[names[0]], colors=colors) if names else "",
        gradio.update(value=str(service.write_csv(found)) if any_result else None, visible=any_result),
        _fenced(prediction_code(model), _link("predict", example=chosen or "", model=model, colors=colors)),
        found.crystals,
    )


def _show(service: Service, name: str, other: str, colors: ColorScheme, crystals: dict[str, Any]) -> str:
    """One crystal, or two beside one another and whether they are the same."""
    if name not in crystals:
        return ""
    if other not in crystals or other == name:
        return view_html(crystals[name], colors=colors)
    pair = {key: crystals[key] for key in (name, other)}
    same = service.are_equal(*pair.values())
    words = {True: "the same crystal", False: "different crystals", None: "not comparable: ordered bulk crystals are"}
    verdict = f"{name} and {other} are {words[same]} (StructureMatcher)."
    return message(verdict, "good" if same else "note") + side_by_side(pair, colors)


# ----------------------------------------------------------------------------------------------------------- generate


def _generate_tab(gradio: Any, service: Service) -> dict[str, Any]:
    from ..mat2seq.space_groups import space_group_symbols

    conditions = service.conditions()
    with gradio.Row():
        with gradio.Column(scale=2, min_width=280):
            composition = gradio.Textbox("SrTiO3", label="formula; empty for any", elem_id="generate-composition")
            group = gradio.Dropdown(
                [_ANY, *space_group_symbols()], value=_ANY, label="space group", elem_id="generate-group"
            )
            targets = [
                gradio.Textbox("", label=f"{name.replace('_', ' ')}, {unit} (optional)", elem_id=f"generate-{name}")
                for name, unit in conditions
            ]
            num = gradio.Slider(1, MAX_GENERATED, 3, step=1, label="crystals", elem_id="generate-num")
            temperature = gradio.Slider(0, 1.5, 0.8, step=0.1, label="temperature", elem_id="generate-temperature")
            seed = gradio.Number(0, label="seed", precision=0, elem_id="generate-seed")
            colors = gradio.Dropdown(_COLORS, label="colors", elem_id="generate-colors")
            button = gradio.Button("Generate", variant="primary", elem_id="generate-button")
        with gradio.Column(scale=3, min_width=280):
            status = _html(gradio, message("A small model: it takes some seconds.", "note"), elem_id="generate-status")
            gallery = _html(gradio, elem_id="generate-gallery")
            download = gradio.File(label="crystals as CIF", visible=False, elem_id="generate-zip", interactive=False)
    python = _python(gradio, generation_code(service.generator, "SrTiO3", num=3, temperature=0.8, seed=0), "generate")
    names = [name for name, _ in conditions]
    button.click(
        functools.partial(_generate, gradio, service, names),
        [composition, group, num, temperature, seed, colors, *targets],
        [status, gallery, download, python],
        api_name="generate",
    )
    asked = {"formula": composition, "space_group": group, "num": num, "temperature": temperature, "seed": seed}
    asked |= {"colors": colors, **dict(zip(names, targets, strict=True))}
    return {f"generate-{name}": field for name, field in asked.items()}


def _generate(
    gradio: Any,
    service: Service,
    names: list[str],
    composition: str,
    group: str,
    num: float,
    temperature: float,
    seed: float,
    colors: ColorScheme,
    *targets: str,
) -> tuple[Any, ...]:
    try:
        asked: dict[str, Any] = {
            "space_group": None if group == _ANY else group,
            "properties": {
                name: _number(value, name.replace("_", " "))
                for name, value in zip(names, targets, strict=True)
                if value.strip()
            },
            "num": int(_number(num, "number of crystals")),
            "temperature": _number(temperature, "temperature"),
            "seed": int(_number(seed, "seed")),
        }
        crystals = service.generate(composition, **asked)
    except ValueError as error:
        return message(str(error)), "", gradio.update(visible=False), gradio.update()
    note = f"{len(crystals)} crystals, the most probable first."
    if len(crystals) < num:
        note += " Equal ones are shown once, with their number; raise the temperature for more."
    state = {key: value for key, value in asked.items() if key not in ("properties", "space_group")}
    state |= {"colors": colors, **dict(zip(names, targets, strict=True))}
    link = _link("generate", formula=composition, space_group=group, **state)
    return (
        message(note, "good"),
        crystal_cards(crystals, colors),
        gradio.update(value=str(service.write_zip(crystals)), visible=True),
        _fenced(generation_code(service.generator, composition, **asked), link),
    )


# -------------------------------------------------------------------------------------------------------- look inside


def _inside_tab(gradio: Any, service: Service) -> dict[str, Any]:
    with gradio.Row():
        with gradio.Column(scale=2, min_width=280):
            files, text, example, model = _sources(gradio, service, "inside", many=False)
            with gradio.Row():
                atom = gradio.Number(1, label="atom", precision=0, minimum=1, elem_id="inside-atom", min_width=80)
                block = gradio.Number(1, label="block", precision=0, minimum=1, elem_id="inside-block", min_width=80)
                head = gradio.Number(
                    0, label="head (0: mean)", precision=0, minimum=0, elem_id="inside-head", min_width=80
                )
            button = gradio.Button("Look inside", variant="primary", elem_id="inside-button")
        with gradio.Column(scale=3, min_width=280):
            status = _html(gradio, elem_id="inside-status")
            view = _html(gradio, elem_id="inside-view")
    attention = _html(gradio, elem_id="inside-attention")
    frames = _html(gradio, elem_id="inside-frames")
    gradio.Markdown("### The sequence\nOne crystal has one sequence, however it is described. Try to change it:")
    with gradio.Row():
        change = gradio.Dropdown(
            [*_CHANGES, "all of them"], value="rotation", label="change the description", elem_id="inside-change"
        )
        play = gradio.Button("Describe it anew", elem_id="inside-play")
    sequence = _html(gradio, elem_id="inside-sequence")
    proof = _html(gradio, elem_id="inside-proof")
    python = _python(gradio, inside_code(service.property_models[0]), "inside")
    told = gradio.State([])
    sources = [files, text, example, model]
    button.click(
        functools.partial(_look, gradio, service),
        [*sources, atom, block, head],
        [status, view, attention, frames, sequence, proof, python, told],
        api_name="look_inside",
    )
    play.click(functools.partial(_play, service), [*sources, change, told], [proof, told], api_name=False)
    asked = {"example": example, "model": model, "atom": atom, "block": block, "head": head}
    return {f"inside-{name}": field for name, field in asked.items()}


def _one_crystal(service: Service, files: Any, text: str, example: str) -> Any:
    """The crystal that is meant: one's own before the example."""
    given = _as_list(files)[:1]
    pasted = "" if given else text
    found = service.read(given, pasted, None if given or pasted.strip() else example or None)
    if found.errors:
        name, reason = found.errors[0]
        raise CrystalInputError(reason, name=name)
    if not found.crystals:
        raise CrystalInputError("give a file, paste a crystal or choose an example")
    return next(iter(found.crystals.values()))


def _look(
    gradio: Any,
    service: Service,
    files: Any,
    text: str,
    example: str,
    model: str,
    atom: float,
    block: float,
    head: float,
) -> tuple[Any, ...]:
    from ..viz import plot_attention, plot_frames

    try:
        record = _one_crystal(service, files, text, example)
        seen = service.inspect(model, record)
        center, looking = int(_number(atom, "atom")) - 1, int(_number(head, "head")) - 1 if head else None
        seen.check(atom=center, head=looking)
        place = int(_number(block, "block")) - 1
        if not 0 <= place < len(seen.blocks):
            raise ValueError(f"block is {place + 1}; this model has {len(seen.blocks)}")
        first = service.retell(model, record, predicted=seen.values)
    except ValueError as error:
        return message(str(error)), "", "", "", "", "", gradio.update(), []
    own = bool(_as_list(files) or text.strip())
    link = _link("inside", example="" if own else example, model=model, atom=atom, block=block, head=head or 0)
    label = seen.labels[center]
    values = ", ".join(
        f"{name.replace('_', ' ')} {value:.3f} {seen.units[name]}" for name, value in seen.values.items()
    )
    has_frames = seen.blocks[0].atoms and seen.blocks[0].atoms[0].axes is not None
    about = "Lines: what it attends to."
    if has_frames:
        about += (
            " Arrows: its frame; where directions are equally strong, all of them, as the mean over them is taken."
        )
    attention = plot_attention(seen, atom=center, head=looking)
    described = f"attention in {seen.formula}, in every block"
    frames = ""
    if has_frames:
        frames = picture(plot_frames(seen, atom=center, head=looking or 0), f"frames of {label}")
    return (
        message(f"{seen.formula}: {values}. {label} in block {place + 1}. {about}", "note"),
        view_html(record, inspected=seen, block=place, atom=center, head=looking),
        picture(attention, described),
        frames,
        sequence_html(first.sequence),
        insight_table(first, []),
        _fenced(inside_code(model, center, looking), link),
        [first],
    )


def _play(
    service: Service, files: Any, text: str, example: str, model: str, change: str, told: list[Any]
) -> tuple[str, list[Any]]:
    try:
        record = _one_crystal(service, files, text, example)
        first = service.retell(model, record)
        kept = told[1:] if told and told[0].sequence == first.sequence else []
        changes = _CHANGES if change not in _CHANGES else (change,)
        kept += [service.retell(model, record, name, seed=len(kept) + place) for place, name in enumerate(changes)]
    except ValueError as error:
        return message(str(error)), told
    kept = kept[-12:]
    return insight_table(first, kept), [first, *kept]
