from llmrs_lightning.data.sources.amazon import AmazonReviews2018, AmazonReviews2023
from llmrs_lightning.data.sources.base import Source
from llmrs_lightning.data.sources.bookcrossing import BookCrossing
from llmrs_lightning.data.sources.citeulike import CiteULikeA
from llmrs_lightning.data.sources.files import FileSource
from llmrs_lightning.data.sources.lastfm import LastFM
from llmrs_lightning.data.sources.mind import MIND
from llmrs_lightning.data.sources.movielens import MovieLens100K
from llmrs_lightning.data.sources.movielens_files import MovieLens
from llmrs_lightning.data.sources.synthetic import Checkerboard
from llmrs_lightning.data.sources.yelp import Yelp

__all__ = [
    "MIND",
    "AmazonReviews2018",
    "AmazonReviews2023",
    "BookCrossing",
    "Checkerboard",
    "CiteULikeA",
    "FileSource",
    "LastFM",
    "MovieLens",
    "MovieLens100K",
    "Source",
    "Yelp",
]
