"""How good predictions and generated crystals are, each figure with its parts and its protocol.

Names are loaded when first used (PEP 562): importing this package imports neither pymatgen nor numpy.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .distributions import COVERAGE_CUTOFFS as COVERAGE_CUTOFFS
    from .distributions import CoverageResult as CoverageResult
    from .distributions import DistributionResult as DistributionResult
    from .distributions import coverage as coverage
    from .distributions import distribution_distances as distribution_distances
    from .generation import NoveltyResult as NoveltyResult
    from .generation import SpaceGroupResult as SpaceGroupResult
    from .generation import UniquenessResult as UniquenessResult
    from .generation import novelty as novelty
    from .generation import space_group_agreement as space_group_agreement
    from .generation import uniqueness as uniqueness
    from .regression import RegressionMetrics as RegressionMetrics
    from .regression import TargetMetrics as TargetMetrics
    from .regression import regression_metrics as regression_metrics
    from .structure_matching.matching import DEFAULT_MATCHER as DEFAULT_MATCHER
    from .structure_matching.matching import DIFFCSP_MATCHER as DIFFCSP_MATCHER
    from .structure_matching.matching import MatcherSettings as MatcherSettings
    from .structure_matching.matching import MatchResult as MatchResult
    from .structure_matching.matching import MetreResult as MetreResult
    from .structure_matching.matching import SampleMatch as SampleMatch
    from .structure_matching.matching import match_rate as match_rate
    from .structure_matching.matching import metre as metre
    from .valid_crystals import CrystalValidity as CrystalValidity
    from .valid_crystals import ValidityResult as ValidityResult
    from .valid_crystals import validity as validity

# public name -> file that defines it; no file may have the name of a function
_NAMES = {
    "COVERAGE_CUTOFFS": "distributions",
    "DEFAULT_MATCHER": "structure_matching.matching",
    "DIFFCSP_MATCHER": "structure_matching.matching",
    "CoverageResult": "distributions",
    "CrystalValidity": "valid_crystals",
    "DistributionResult": "distributions",
    "MatchResult": "structure_matching.matching",
    "MatcherSettings": "structure_matching.matching",
    "MetreResult": "structure_matching.matching",
    "NoveltyResult": "generation",
    "RegressionMetrics": "regression",
    "SampleMatch": "structure_matching.matching",
    "SpaceGroupResult": "generation",
    "TargetMetrics": "regression",
    "UniquenessResult": "generation",
    "ValidityResult": "valid_crystals",
    "coverage": "distributions",
    "distribution_distances": "distributions",
    "match_rate": "structure_matching.matching",
    "metre": "structure_matching.matching",
    "novelty": "generation",
    "regression_metrics": "regression",
    "space_group_agreement": "generation",
    "uniqueness": "generation",
    "validity": "valid_crystals",
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> object:
    """Load a public name on first use."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted({*globals(), *__all__})
