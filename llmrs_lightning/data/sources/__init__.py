from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.files import FileSource
from llmrs_lightning.data.sources.movielens import MovieLens100K
from llmrs_lightning.data.sources.movielens_files import MovieLens
from llmrs_lightning.data.sources.synthetic import Checkerboard

__all__ = ["Checkerboard", "FileSource", "MovieLens", "MovieLens100K", "Source"]
