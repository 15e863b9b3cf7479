"""`python -m llmrs_lightning` is `llmrs`."""

from llmrs_lightning.cli import entry_point

entry_point()
