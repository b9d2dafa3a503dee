"""Pipelines of this package; the files travel to the Hub, so they import only torch, transformers and siblings."""
