"""Crystal-structure models for Hugging Face transformers.

Importing this package makes `AutoConfig`, `AutoModel`, `AutoModelForSequenceClassification`, `AutoFeatureExtractor`,
`AutoTokenizer` and `pipeline` of transformers know the classes listed below; there is no other side effect. Names are
loaded when first used (PEP 562), so the import itself costs a few milliseconds and does not load torch.
"""

from ._lazy_names import lazy_names
from .auto import register_auto_classes

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_names(__name__)
__all__ += ["__version__"]
register_auto_classes()
