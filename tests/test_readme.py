"""What the README says is so: its commands, its snippets, its links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from llmrs_lightning.cli import COMMANDS
from llmrs_lightning.training.config import build
from llmrs_lightning.training.rundir import CONFIG, ENVIRONMENT, METRICS, PER_GROUP, PREDICTIONS, SLICES, SPLIT

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INDEX = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_command_named_exists_and_every_command_is_named() -> None:
    named = set(re.findall(r"llmrs (\w+)", README))
    assert set(COMMANDS) <= named
    assert named <= set(COMMANDS)


@pytest.mark.parametrize("text", [README, INDEX], ids=["README", "experiments"])
def test_every_file_named_exists(text: str) -> None:
    for path in set(re.findall(r"experiments/[\w/]+\.yaml", text)):
        assert (ROOT / path).is_file(), path
    for target in set(re.findall(r"\]\((?!https?:)([^)#]+)\)", text)):
        base = ROOT if text is README else ROOT / "experiments"
        assert (base / target).exists(), target


def test_every_experiment_has_a_row_in_the_index() -> None:
    for config in (ROOT / "experiments").rglob("*.yaml"):
        assert str(config.relative_to(ROOT)) in INDEX


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = next(line for block in blocks("bash") for line in block.splitlines() if "[dev]" in line)
    assert command.replace("pip install", "pip install --quiet") in (ROOT / ".ci" / "run").read_text()


def test_the_own_data_snippet_is_a_configuration(tmp_path: Path, tiny_bert: str) -> None:
    snippet = next(block for block in blocks("yaml") if "FileSource" in block)
    config = tmp_path / "own.yaml"
    model = {
        "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert}},
        "scorers": {"dnn": {"class_path": "DNNScorer"}},
    }
    config.write_text(yaml.safe_dump(yaml.safe_load(snippet) | {"model": model}))
    cli = build(["--config", str(config)])
    assert cli.datamodule.schema.user_id == "userId"
    assert cli.datamodule.user_text.fields == ["age", "gender", "country"]


def test_the_parts_table_names_classes_that_exist() -> None:
    import llmrs_lightning.data.sources as sources
    import llmrs_lightning.data.splits as splits
    import llmrs_lightning.scorers as scorers
    from llmrs_lightning.training import losses

    for line, module in (("`Source`", sources), ("`Splitter`", splits), ("`Scorer`", scorers), ("`Loss`", losses)):
        row = next(text for text in README.splitlines() if text.startswith(f"| {line}"))
        names = re.findall(r"`(\w+)`", row)[1:]
        assert names
        for name in names:
            assert hasattr(module, name), name


def test_the_files_of_a_run_directory_are_named() -> None:
    for name in (CONFIG, ENVIRONMENT, METRICS, PER_GROUP, PREDICTIONS, SLICES, SPLIT):
        assert f"`{name}`" in README
