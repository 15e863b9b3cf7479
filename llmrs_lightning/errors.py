"""Errors that a user can act on: what, where, what was found, what is allowed, how to go on."""

from __future__ import annotations

import difflib
import errno
import importlib
import traceback
from collections.abc import Iterable
from types import ModuleType

_SHOWN = 12


def listing(names: Iterable[object], limit: int = _SHOWN) -> str:
    """Join `names` for an error message, cut after `limit` of them with the number left out."""
    shown = [str(name) for name in names]
    more = len(shown) - limit
    return ", ".join(shown[:limit]) + (f" and {more:,} more" if more > 0 else "") if shown else "nothing"


def suggestion(name: str, allowed: list[str]) -> str:
    """Say which of the allowed names comes nearest to `name`, or nothing if none is near."""
    near = difflib.get_close_matches(name.lower(), [other.lower() for other in allowed], n=1, cutoff=0.6)
    return f"did you mean {next(other for other in allowed if other.lower() == near[0])!r}?" if near else ""


class LLMRSError(ValueError):
    """A mistake that the user can mend; the command line shows it without a traceback and exits with 2.

    Args:
        what: What is wrong, one sentence.
        where: The option, file, line or column at fault.
        found: What was found there.
        allowed: What would have been accepted.
        fix: How to go on.
    """

    def __init__(self, what: str, *, where: str = "", found: str = "", allowed: str = "", fix: str = "") -> None:
        self.what, self.where, self.found, self.allowed, self.fix = what, where, found, allowed, fix
        parts = (("where", where), ("found", found), ("allowed", allowed), ("to go on", fix))
        lines = [f"  {name + ':':<10}{text}" for name, text in parts if text]
        super().__init__("\n".join([what, *lines]))


class ConfigError(LLMRSError):
    """An option that cannot be used as it is written."""


class DataError(LLMRSError):
    """A file, table or split that cannot be used."""


class SchemaError(DataError):
    """Tables that do not fit their schema.

    Args:
        problems: Every problem that was found, so that one run reports them all.
    """

    def __init__(self, problems: list[LLMRSError]) -> None:
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the tables"
        ValueError.__init__(self, "\n".join([count, *(f"{i}. {p}" for i, p in enumerate(problems, 1))]))


class ModelError(LLMRSError):
    """A model, tokeniser or checkpoint that cannot be found or loaded."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error tells of an allocation that failed, on the machine or on a GPU."""
    words = ("out of memory", "DefaultCPUAllocator", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def is_lost_worker(error: BaseException) -> bool:
    """Say whether an error tells of a process that loaded batches and is gone, perhaps while it handed one over."""
    if _signalled(error) is not None:
        return True
    frames = (frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, ConnectionError | EOFError | FileNotFoundError) and "_try_get_data" in frames


def _signalled(error: BaseException) -> BaseException | None:
    """Return what torch raised at the end of a worker, of which other code may have made another error."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        if isinstance(link, RuntimeError) and "DataLoader worker (pid" in str(link):
            return link
        seen.append(link)
        link = link.__cause__ or link.__context__
    return None


def first_line(error: BaseException) -> str:
    """Return what an error says in its first line, or its name; of a lost worker's, what torch said of that."""
    told = _signalled(error) or error
    return (str(told) or type(told).__name__).splitlines()[0]


def fault(error: BaseException) -> DataError | None:
    """Say in words what a command has met that is neither its own mistake nor the user's; None for anything else."""
    found = first_line(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError("the disk is full", where=error.filename or "", found=found, fix="make room on it")
    if is_lost_worker(error):
        return DataError(
            "a process that loads batches has ended before its time",
            where="data.num_workers",
            found=found,
            fix="run it again; if the system has killed it for its memory, with fewer workers",
        )
    if is_out_of_memory(error):
        return DataError("memory ran out", found=found, fix="lower data.eval_batch_size, or make room")
    return None


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package, or say in one line how to install it.

    Args:
        module: Name of the module to import.
        extra: The extra of this package that installs it.
        purpose: What it is needed for.

    Raises:
        ConfigError: If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{purpose} needs the package {module}: pip install 'llmrs_lightning[{extra}]'") from error
