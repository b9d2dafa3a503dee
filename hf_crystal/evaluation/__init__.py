"""How good predictions and generated crystals are, each figure with its parts and its protocol.

Names are loaded when first used (PEP 562): importing this package imports neither pymatgen nor numpy.
"""

from .._lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
