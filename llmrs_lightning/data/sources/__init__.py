from llmrs_lightning.data.sources.amazon import AmazonReviews2018, AmazonReviews2023
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.bookcrossing import BookCrossing
from llmrs_lightning.data.sources.files import FileSource
from llmrs_lightning.data.sources.movielens import MovieLens100K
from llmrs_lightning.data.sources.movielens_files import MovieLens
from llmrs_lightning.data.sources.synthetic import Checkerboard

__all__ = [
    "AmazonReviews2018",
    "AmazonReviews2023",
    "BookCrossing",
    "Checkerboard",
    "FileSource",
    "MovieLens",
    "MovieLens100K",
    "Source",
]
