"""Encoders of text."""

from llmrs_lightning.encoders.text import TextEncoder
from llmrs_lightning.encoders.vectors import TextVectors

__all__ = ["TextEncoder", "TextVectors"]
