"""A sweep file is read whole, and everything that is wrong with it is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.sweeping import sweep_file, write

from llmrs_lightning.errors import ConfigError
from llmrs_lightning.lab.sweep_file import load_sweep
from llmrs_lightning.lab.sweep_spec import Dimension, SweepError, flatten, overlap

NAMES = st.from_regex(r"[a-z]{1,3}", fullmatch=True)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    file = write(
        tmp_path / "bad.yaml",
        {
            "name": "a/b",
            "base": "nowhere.yaml",
            "sedes": [1],
            "seeds": [0, 0, -1],
            "options": {"run": {"id": "x"}},
            "variants": {"a b": {"trainer.max_epochs": 1}},
            "grid": {"trainer.max_epochs": [1, 2], "model.monitor": []},
            "parallel": {"jobs": 0, "device": 1},
            "follow": {"direction": "up"},
            "search": {"sampler": "grid", "space": {"x": {"low": 2, "high": 1}, "model.monitor": ["auc"]}},
        },
    )
    with pytest.raises(SweepError) as caught:
        load_sweep(file)
    said = str(caught.value)
    assert said.startswith(f"{len(caught.value.problems)} problems in the sweep, {file}")
    for part in (
        "'a/b'",
        "nowhere.yaml",
        "did you mean 'seeds'?",
        "a seed is named twice",
        "-1",
        "run.id is set by the sweep",
        "'a b'",
        "trainer.max_epochs is set in two places",
        "grid, model.monitor",
        "parallel, jobs",
        "did you mean 'devices'?",
        "follow, direction",
        "'grid'",
        "search, space, x",
        "a search takes no variants",
        "a search takes no grid",
        "compared by different metrics",
    ):
        assert part in said, part


def test_variants_may_be_numbers_for_yaml_or_set_nothing(tmp_path: Path) -> None:
    base, grid = write(tmp_path / "base.yaml", {}), {"model.frozen_epochs": [1]}
    common = {"name": "s", "base": str(base), "seeds": [0], "grid": grid}
    with pytest.raises(SweepError, match="8"):
        load_sweep(write(tmp_path / "a.yaml", common | {"variants": {8: {"trainer.max_epochs": 8}}}))
    sweep = load_sweep(write(tmp_path / "b.yaml", common | {"variants": {"a": None, "b": {"trainer.max_epochs": 1}}}))
    assert list(sweep.variants) == ["a", "b"]


@pytest.mark.parametrize("text", ["- 1", "a: [", ""])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_sweep(tmp_path / "s.yaml")


def test_a_file_is_read_as_written(tmp_path: Path) -> None:
    other = write(tmp_path / "other.yaml", {})
    file = sweep_file(
        tmp_path,
        seeds=[3, 4],
        options={"trainer": {"max_epochs": 2}},
        variants={"a": {}, "b": {"base": str(other)}, "c": {"config": [str(other)], "model.monitor": "gauc"}},
        grid={"data.batch_size": [8, 16]},
        parallel={"devices": [0, "1,2"]},
        follow="ndcg@10",
    )
    sweep = load_sweep(file)
    base = str(tmp_path / "base.yaml")
    assert [v.configs for v in sweep.variants.values()] == [[base], [str(other)], [base, str(other)]]
    assert sweep.variants["c"].options == {"trainer.max_epochs": 2, "model.monitor": "gauc"}
    assert (sweep.parallel.jobs, sweep.parallel.devices) == (2, ["0", "1,2"])
    assert (sweep.seeds, sweep.grid, sweep.follow) == ([3, 4], {"data.batch_size": [8, 16]}, "ndcg@10")
    assert sweep.path == tmp_path / "runs" / "s"


def test_ranges_of_a_search(tmp_path: Path) -> None:
    space: dict[str, Any] = {"a": {"low": "1e-4", "high": 1, "log": True}, "b": [[1], None], "c": {"low": 1, "high": 3}}
    space["c"]["type"] = "int"
    search = load_sweep(sweep_file(tmp_path, search={"space": space})).search
    assert search is not None
    assert search.space == {
        "a": Dimension(None, 1e-4, 1.0, True),
        "b": Dimension([[1], None]),
        "c": Dimension(None, 1, 3, False, "int"),
    }


@given(st.dictionaries(NAMES, st.integers() | st.dictionaries(NAMES, st.integers()), max_size=3))
def test_nested_groups_and_dotted_names_are_one(options: dict[str, Any]) -> None:
    assert flatten({"model": options}) == {f"model.{name}": value for name, value in options.items()}
    assert flatten(flatten({"model": options})) == flatten({"model": options})


@given(st.lists(NAMES, min_size=1, max_size=3), st.lists(NAMES, min_size=1, max_size=3))
def test_options_overlap_where_one_holds_the_other(one: list[str], other: list[str]) -> None:
    size = min(len(one), len(other))
    assert overlap(".".join(one), ".".join(other)) == (one[:size] == other[:size])
