from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.synthetic import Checkerboard

__all__ = ["Checkerboard", "Source"]
