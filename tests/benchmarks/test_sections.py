"""Each section runs at toy size and finds what it is there to find."""

import os
import re
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import baselines, compare, evaluation, gpu, growth, latency, long, memory, start, training
from benchmarks.steps import Framework, tokens
from benchmarks.synthetic import Synthetic, config

TINY = (1, 16, 2, 64)


@pytest.fixture
def base(tiny_bert, tmp_path):
    return config(str(tmp_path), tiny_bert, {"max_length": 16, "batch_size": 64}, users=12, items=10, rows=300)


def cells(table):
    return {row[0]: dict(zip(table.headings, row, strict=True)) for row in table.rows}


def number(text):
    return float(re.match(r"[\d.,]+", text)[0].replace(",", ""))


def test_training_has_a_row_for_each_way(base, tiny_bert, monkeypatch):
    monkeypatch.setattr(compare, "sentence_transformers_missing", lambda: "not measured: pip install it")
    (table,) = training.training(
        2, base, tiny_bert, random=(16, 64), blocks=(32,), last=1, per_pair=((4, 16), (8, None)), others=(8,)
    )
    rows = cells(table)
    assert len(rows) == 2 + 2 * 3 + 2 + 1
    assert rows["a pair at a time, batches of 4, padded to 16"]["x naive"] == "1.00 (1.00 to 1.00)"
    assert rows["sentence-transformers, batches of 8"]["rows/s"] == "not measured: pip install it"
    few, many = (number(rows[f"random batches of {size}"]["tokens/step"]) for size in (16, 64))
    assert 0 < few <= many <= 12 * (12 + 10)  # at most each text once
    assert rows["random batches of 64"]["filled"] == "100.0%"
    assert number(rows["blocks of 32"]["step / encoder alone"]) > 0
    assert rows["blocks of 32, last 1 layers"]["step / encoder alone"] == "-"
    assert any("blocks of 32, last 1 layers, x all layers" in note for note in table.notes)


def test_the_other_library_trains_the_same_pairs_one_step_a_turn(base, tiny_bert, tmp_path):
    pytest.importorskip("sentence_transformers", reason='pip install -e ".[bench]"')
    pytest.importorskip("accelerate")
    framework = Framework(base, str(tmp_path))
    framework.turns.end()
    pairs = baselines.text_pairs(framework.data)
    train = framework.data.spec.train
    assert len(pairs[2]) == len(train)
    assert sorted(pairs[2]) == sorted(train.label.tolist())
    turns = baselines.sentence_transformers(tiny_bert, pairs, 8, 16)
    for _ in range(2):
        turns.step()
    turns.end()


def test_without_the_other_library_the_command_to_install_it_is_said(monkeypatch):
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in baselines.sentence_transformers_missing()


def test_steps_of_this_framework_learn_from_each_row_of_an_epoch_once(base, tmp_path):
    framework = Framework(base, str(tmp_path))
    framework.step()
    before = {name: value.clone() for name, value in framework.module.named_parameters()}
    rows = [framework.batch.rows]
    for _ in range(len(framework.data.train_dataloader()) - 1):
        framework.step()
        rows.append(framework.batch.rows)
    framework.turns.end()
    assert torch.cat(rows).sort().values.tolist() == list(range(len(framework.data.spec.train)))
    moved = {name for name, value in framework.module.named_parameters() if not torch.equal(value, before[name])}
    assert any("word_embeddings" in name for name in moved)
    assert any("scorers.dnn" in name for name in moved)
    assert tokens(framework.batch)[1] == 1.0


def test_plain_loops_learn_and_pad_as_they_say(tiny_bert):
    loop = baselines.PerPair(tiny_bert, (["red bag"] * 4, ["garden"] * 4, [1.0, 0.0] * 2), 2, padded=9)
    texts, label = next(loop.batches)
    assert texts["input_ids"].shape == (4, 9)
    assert label.tolist() == [1, 0]
    before = loop.backbone.embeddings.word_embeddings.weight.clone()
    assert loop.step() == 2
    assert not torch.equal(before, loop.backbone.embeddings.word_embeddings.weight)
    short = baselines.PerPair(tiny_bert, loop.pairs, 2, max_length=8)
    assert next(short.batches)[0]["input_ids"].shape == (4, 4)


def test_growth_counts_the_batches_of_each_table(tiny_bert):
    (table,) = growth.growth(1, tiny_bert, TINY, rows=(100, 200), texts=(10, 20), batch=32)
    assert len(table.rows) == 6
    batches = {(row[0], row[1], row[2]): int(row[3]) for row in table.rows}
    assert batches["100", "10", "shuffled"] == 4
    assert batches["200", "10", "blocks"] == 7
    assert len(table.notes) == 2


def test_long_texts_have_the_length_asked_for(tiny_bert):
    (table,) = long.long(1, tiny_bert, tokens=40, texts=8, rows=200, batch=16, per_pair=4)
    rows = cells(table)
    assert number(rows["random batches of 16"]["tokens/step"]) % 40 == 0
    assert len(rows) == 5


@pytest.mark.slow  # processes of their own
def test_memory_and_start_are_measured_in_processes_of_their_own(base, tiny_bert, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (table,) = memory.memory(1, base, tiny_bert, rows=128, chunk=64, texts=(8, 16))
    assert [row[3] for row in table.rows] == ["none", "64", "none", "64", "64"]
    assert all(float(row[5]) >= float(row[4]) > 0 for row in table.rows)
    (table,) = start.start(1, [*base, "--model.ranking", "true"], 1)
    assert [row[2] for row in table.rows] == ["no", "no"]


def test_evaluation_agrees_with_torchmetrics():
    tables = evaluation.evaluation(2, users=20, items=30, groups=25, candidates=40, grid=((5, 10), (20, 40)))
    assert [len(table.rows) for table in tables] == [2, 2, 2]
    assert "largest difference" in tables[1].notes[0]
    assert torch.get_num_threads() == 1


def test_a_scored_catalogue_has_no_dropout():
    ranked = evaluation.Ranked(5, 7)
    assert ranked.score().shape == (5, 7)
    assert torch.equal(ranked.score(), ranked.score())


def test_a_gpu_is_measured_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "not measured: no GPU here" in gpu.gpu()[0].markdown()
    (table,) = gpu.gpu(1, {"tiny": TINY}, (4, 8), tokens=16, device="cpu")
    assert [row[:3] for row in table.rows] == [["tiny", "4", "4"], ["tiny", "8", "2"]]


def test_the_work_of_a_token_is_that_of_its_weights_and_its_attention():
    assert gpu.flops((12, 768, 12, 30_522), 128) == pytest.approx(6 * 85e6 + 12 * 12 * 128 * 768, rel=1e-2)


def test_synthetic_texts_have_their_length_in_tokens(tiny_bert):
    from transformers import AutoTokenizer

    tables = Synthetic(5, 6, 20, tokens=9).load()
    assert (len(tables.users), len(tables.items)) == (5, 6)
    encoded = AutoTokenizer.from_pretrained(tiny_bert)(tables.items["text"][:])
    assert {len(ids) for ids in encoded["input_ids"]} == {9}


def test_the_command_runs_the_sections_that_are_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command.main(["gpu"])
    out = capsys.readouterr().out
    assert "no GPU here" in out
    assert "thread(s) used" in out
    with pytest.raises(SystemExit) as stop:
        command.main(["speed"])
    assert stop.value.code == 2
    assert "no section speed" in capsys.readouterr().err


def test_latency_has_requests_of_each_kind_and_lists_for_everyone(tiny_bert):
    pytest.importorskip("faiss")
    one, all_users = latency.latency(
        1, users=40, items=60, rows=600, requests=3, steps=2, candidates=50, everyone=8, pretrained=tiny_bert
    )
    rows = cells(one)
    assert len(rows) == 6
    assert all(0 < number(row["p50, ms"]) <= number(row["p99, ms"]) for row in rows.values())
    recalls = [number(row["recall@10"]) for row in rows.values() if row["recall@10"] != "-"]
    assert len(recalls) == 2
    assert min(recalls) > 0.9
    assert len(cells(all_users)) == 2
    assert len(one.notes) == 4
