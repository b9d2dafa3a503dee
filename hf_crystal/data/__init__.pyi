from .batching import AtomBudgetBatchSampler as AtomBudgetBatchSampler
from .benchmarks import BenchmarkError as BenchmarkError
from .benchmarks import BenchmarkSpec as BenchmarkSpec
from .benchmarks import official_split as official_split
from .collators import CrystalCollator as CrystalCollator
from .columns import crystal_features as crystal_features
from .columns import crystal_row as crystal_row
from .jarvis import load_jarvis as load_jarvis
from .loading import load_crystal_dataset as load_crystal_dataset
from .materials_project import load_materials_project as load_materials_project
from .oqmd import load_oqmd as load_oqmd
from .sources import load as load
from .tables import CrystalDatasetDict as CrystalDatasetDict

OFFICIAL_SOURCES: tuple[str, ...]
