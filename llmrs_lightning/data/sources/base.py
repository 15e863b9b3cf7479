"""The seam through which data comes in."""

from __future__ import annotations

from abc import ABC, abstractmethod

from llmrs_lightning.data.schema import Tables


class Source(ABC):
    """Loads the three tables; a new source has to give `name` and `load`, and passes the contract test.

    The contract: users and items have one row per id; each interaction's ids are in these tables, equal as strings;
    loading twice gives equal tables in equal order; nothing that the caller could see is changed by loading; column
    names are free, since a `Schema` gives them their roles. A table whose ids alone are known may be None.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name the data in file names and run directories: lower case, no spaces."""

    @abstractmethod
    def load(self) -> Tables:
        """Read the tables, downloading or building them first if need be.

        Raises:
            DataError: If a table cannot be read.
        """
