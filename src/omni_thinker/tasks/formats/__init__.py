"""Forms that published rows are in: how each is recognised, and what is taken of it."""

from omni_thinker.tasks.formats.base import PLAIN, Format, Unusable
from omni_thinker.tasks.formats.registry import FORMATS, Form, recognise

__all__ = ["FORMATS", "PLAIN", "Form", "Format", "Unusable", "recognise"]
