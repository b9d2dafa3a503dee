"""Label columns have a unit and a meaning."""

import pytest

from hf_crystal.data import PROPERTIES, property_spec
from hf_crystal.data.jarvis import JARVIS
from hf_crystal.data.materials_project import MEGNET
from hf_crystal.data.oqmd import OQMD


def test_every_benchmark_label_is_described():
    for spec in [*JARVIS.values(), MEGNET, *OQMD.values()]:
        for name in spec.labels:
            assert property_spec(name).description


def test_energies_per_atom_say_so():
    for spec in PROPERTIES.values():
        assert spec.per_atom == spec.unit.endswith("/atom") or spec.name == "ehull"
    assert property_spec("mb_e_form").unit == "eV/atom"
    assert property_spec("heat_all").per_atom is False


def test_unknown_property_is_named():
    with pytest.raises(ValueError, match="property 'colour' is not known"):
        property_spec("colour")
