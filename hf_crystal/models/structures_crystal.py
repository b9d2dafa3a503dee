"""Former place and names of `hf_crystal.crystals.reading`, kept for scripts that import them."""

from ..crystals.reading import (  # noqa: F401
    ACCEPTED_FORMS,
    CHEMICAL_SYMBOLS,
    CrystalInputError,
    CrystalRecord,
    parse_structure,
    record_to_structure,
)
from ..crystals.reading import as_columns as structure_to_record  # noqa: F401
from ..crystals.reading import as_record as as_structure  # noqa: F401
