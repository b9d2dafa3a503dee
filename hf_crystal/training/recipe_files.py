"""Recipe files: YAML with sections, single values of which can be changed from the command line."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

Recipe = TypeVar("Recipe")


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one value: "section.key=value", the value in YAML, numbers as places in lists.

    Raises:
        ValueError: For text of another form, and for a path through a plain value.
    """
    path, separator, text = override.partition("=")
    *parents, last = path.strip().split(".")
    if not (separator and parents):
        raise ValueError(f"override {override!r}: expected section.key=value")
    place: Any = values
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise ValueError(f"override {override!r}: {parent!r} is a value, not a section")
    value = yaml.safe_load(text)
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value


def without_folders(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe for a record that travels with the model: files and folders by their names only.

    Args:
        recipe: Values of a recipe, by section.
    """
    described = {name: dict(section) if isinstance(section, Mapping) else section for name, section in recipe.items()}
    for section, key in (("data", "path"), ("model", "pretrained")):
        given = described[section].get(key)
        if given and (section == "data" or Path(given).is_dir()):  # not a repository's owner
            described[section][key] = Path(given).name
    return described


def read_recipe(
    path: str | Path,
    overrides: Sequence[str],
    build: Callable[[Mapping[str, Any]], Recipe],
    sections: Sequence[str],
) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: YAML file.
        overrides: See `apply_override`.
        build: Makes the recipe of the values and checks them.
        sections: Top-level keys, for messages.

    Raises:
        ValueError: What `build` raises, and text that is no YAML or no recipe, naming the file.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected sections {', '.join(sections)}")
    for override in overrides:
        apply_override(values, override)
    try:
        return build(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
