"""Folders that anyone can load from the Hub, and their way there."""

from ..cards import render_model_card
from .export import export_pretrained
from .push import planned_push, push_folder

__all__ = ["export_pretrained", "planned_push", "push_folder", "render_model_card"]
