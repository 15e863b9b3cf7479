"""The command line: one table of commands, and one way to report a user's mistake."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from llmrs_lightning import __version__
from llmrs_lightning.errors import LLMRSError, fault

# command -> (module, function, help); modules are imported when their command runs
COMMANDS = {
    "prepare": ("data_commands", "prepare", "load, validate, split and tokenise; say what each part holds"),
    "audit": ("data_commands", "audit", "look for leaks between the parts; exit code 1 if there is one"),
    "fit": ("commands", "fit", "train, test the best epoch, write a run directory"),
    "validate": ("commands", "validate", "evaluate the validation part again from a run"),
    "test": ("commands", "test", "evaluate the test part again from a run"),
    "predict": ("commands", "predict", "table of pairs in, the same table with scores out"),
    "fuse": ("lab.fuse", "fuse", "compute every fusion of a run's members, or of tables from elsewhere, and test them"),
    "compare": ("lab.compare", "compare", "runs side by side: significance, an HTML page, Markdown, CSV and LaTeX"),
    "sweep": (
        "lab.sweep",
        "sweep",
        "one configuration x variants x seeds, each a process and run directory of its own",
    ),
    "recommend": ("recommend.command", "recommend", "best items for known users and new ones; items that are alike"),
    "index": ("recommend.command", "index", "what lists need of the items, computed once, and an index of candidates"),
    "export": ("recommend.command", "export", "a run's recommender as a folder that needs no other file"),
}


def _usage() -> str:
    rows = "\n".join(f"  {name:<12}{text}" for name, (_, _, text) in COMMANDS.items())
    return f"""llmrs {__version__}: recommendation with language models

usage: llmrs COMMAND [options]

{rows}

llmrs COMMAND --help explains each option. A first run:
  llmrs fit --config experiments/quickstart.yaml"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: Command and options; None takes those of the process.

    Returns:
        Exit code: 0, 1 where `audit` finds a leak, or 2 for a mistake that the user can mend.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        print(f"llmrs: there is no command {words[0]!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    module, function, _ = COMMANDS[words[0]]
    try:
        return getattr(importlib.import_module(f"llmrs_lightning.{module}"), function)(words[1:]) or 0
    except LLMRSError as error:
        print(f"llmrs {words[0]}: {error}", file=sys.stderr)
        return 2
    except (OSError, MemoryError, RuntimeError, EOFError) as error:
        told = fault(error)
        if told is None:
            raise
        print(f"llmrs {words[0]}: {told}", file=sys.stderr)
        return 2
    except SystemExit as exit_:
        if isinstance(exit_.code, str):
            print(f"llmrs {words[0]}: {exit_.code}", file=sys.stderr)
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)


def entry_point() -> None:
    """Run `main` and exit with its code."""
    sys.exit(main())
