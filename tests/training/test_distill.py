"""A trained run teaches a smaller model: what is compared, what is taken over, what is refused, and what is left."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from training.resuming import kill_at, left_by, run, write_config
from transformers import BertConfig, BertModel, BertTokenizer

from llmrs_lightning.cli import main
from llmrs_lightning.data.samplers import BatchKey
from llmrs_lightning.errors import ConfigError
from llmrs_lightning.recommend import Recommender
from llmrs_lightning.training.config import build
from llmrs_lightning.training.distill import Distillation
from llmrs_lightning.training.load import load_run
from llmrs_lightning.training.module import JointRecommender
from llmrs_lightning.training.prepare import prepare

E, B = "model__encoder__init_args__", "encoder.backbones.both."


@pytest.fixture(scope="module")
def teacher(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a trained run's configuration; the run is `runs/killed/teacher`."""
    folder = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.setenv("LLMRS_CACHE", str(folder / "cache"))
        path = write_config(tiny_bert, folder, run__id="teacher", trainer__max_epochs=1)
        assert main(["fit", "--config", str(path)]) == 0
    return folder


def student(teacher: Path, folder: Path, tiny_bert: str, **options: Any) -> Path:
    """Write the configuration of a student with the first of the teacher's two layers."""
    run = str(teacher / "runs" / "killed" / "teacher")
    defaults = {f"{E}keep_layers": [0], "model__distill__teacher": run}
    return write_config(tiny_bert, folder, **(defaults | options))


def met(path: Path) -> tuple[JointRecommender, Any, Any]:
    """Build a student, let it meet its teacher, and give a batch with half of the training rows."""
    module, data = prepare(build(["--config", str(path)]))
    module.meet_teacher(data)
    module._teacher.prepare(module, data)
    rows = np.arange(len(data.spec.train) // 2)
    return module, data, data.train_dataloader().dataset[BatchKey(rows, (0, 1), (0, 0, 0))]


def errors(module: JointRecommender, batch: Any) -> dict[str, torch.Tensor]:
    """Compare a batch in training mode, without dropout of whatever kind."""
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    module.behaviour.id_dropout = dict.fromkeys(("user", "item"), 0.0)
    outputs = module.train()(batch)
    return module._teacher.errors(module, batch, outputs, module._pooled)


def test_a_student_that_is_its_teacher_makes_no_error(teacher: Path, tmp_path: Path, tiny_bert: str) -> None:
    module, _, batch = met(student(teacher, tmp_path, tiny_bert, **{f"{E}keep_layers": None}))
    own = module._teacher.module.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in module.state_dict().items())
    found = errors(module, batch)
    assert found.keys() == {"scores", "vectors"}
    assert all(error.shape == (len(batch),) and error.max() < 1e-8 for error in found.values())


def test_errors_are_those_of_scores_and_vectors(teacher: Path, tmp_path: Path, tiny_bert: str) -> None:
    options = {"model__distill__scores": 2.0, "model__distill__vectors": 3.0, "model__member_loss_weight": 0.5}
    module, data, batch = met(student(teacher, tmp_path, tiny_bert, **options))
    master = module._teacher.module
    found = errors(module, batch)
    with torch.no_grad():
        members, fused = module.eval()(batch)
        theirs, target = master(batch)
        assert theirs.shape == (*members.shape[:2], 1)
        expected = (fused - target)[:, 0] ** 2 + 0.5 * ((members - theirs)[..., 0] ** 2).mean(1)
        torch.testing.assert_close(found["scores"], 2 * expected, rtol=1e-3, atol=1e-5)
        sides = []
        for side, texts, rows in (("user", batch.user, batch.source), ("item", batch.item, torch.arange(len(batch)))):
            numbers = torch.from_numpy(np.unique(getattr(data.horizon("train").texts, side).number))
            every = master.text_vectors.pooled(side, numbers)
            spread = (every - every.mean(0)).square().sum(1).mean()
            away = module.text_vectors.pooled(side, texts.text_ids) - master.text_vectors.pooled(side, texts.text_ids)
            sides.append((away.square().sum(1) / spread)[texts.text][rows])
    torch.testing.assert_close(found["vectors"], 3 * (sides[0] + sides[1]) / 2, rtol=1e-3, atol=1e-5)
    assert found["vectors"].min() > 0


def test_what_is_compared_reaches_the_student_alone(teacher: Path, tmp_path: Path, tiny_bert: str) -> None:
    module, _, batch = met(student(teacher, tmp_path, tiny_bert, model__distill__scores=0))
    found = errors(module, batch)
    assert list(found) == ["vectors"]
    found["vectors"].sum().backward()
    assert module.encoder.backbones["both"].embeddings.word_embeddings.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in module._teacher.module.parameters())
    ours, theirs = set(module.parameters()), set(module._teacher.module.parameters())
    assert not ours & theirs
    assert not any(p.requires_grad for p in theirs)
    assert not any("teacher" in name for name in module.state_dict())


@pytest.mark.parametrize("layer", [0, 1])
def test_a_student_starts_with_the_layers_that_it_keeps(
    teacher: Path, tmp_path: Path, tiny_bert: str, layer: int
) -> None:
    for start in (True, False):
        options = {f"{E}keep_layers": [layer], "model__distill__start": start}
        module, _, _ = met(student(teacher, tmp_path, tiny_bert, **options))
        ours, theirs = module.state_dict(), module._teacher.module.state_dict()
        name = "output.dense.weight"
        assert torch.equal(ours[f"{B}encoder.layer.0.{name}"], theirs[f"{B}encoder.layer.{layer}.{name}"]) is start
        assert torch.equal(ours["behaviour.sides.user.ids.weight"], theirs["behaviour.sides.user.ids.weight"]) is start


def test_a_narrower_student_learns_the_principal_components(teacher: Path, tmp_path: Path, tiny_bert: str) -> None:
    narrow = tmp_path / "narrow"
    config = BertConfig.from_pretrained(tiny_bert, hidden_size=8, intermediate_size=16, num_hidden_layers=1)
    BertModel(config).save_pretrained(narrow)
    BertTokenizer.from_pretrained(tiny_bert).save_pretrained(narrow)
    path = student(teacher, tmp_path, str(narrow), **{f"{E}keep_layers": None})
    module, data, batch = met(path)
    assert errors(module, batch)["vectors"].min() > 0
    master, numbers = module._teacher, torch.from_numpy(np.unique(data.horizon("train").texts.item.number))
    every = master.module.text_vectors.pooled("item", numbers)
    centred = every - every.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False)[2][:8]
    batch.item.text_ids = numbers
    targets = centred @ axes.T
    signs = torch.sign((master._maps["item"][1] * axes.T).sum(0))
    away = master._distance(module, "item", batch.item, targets * signs)
    assert away.max() < 1e-4


def test_other_data_losses_and_runs_are_refused_and_leave_nothing(
    teacher: Path, tmp_path: Path, tiny_bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, said in (
        ({"data__splitter": {"class_path": "RandomSplit", "init_args": {"seed": 5}}}, "others: split rows"),
        ({"data__item_text__template": "{description} ."}, "others: texts"),
        ({"model__loss": {"class_path": "MeanSquaredError"}}, "BinaryCrossEntropy, the teacher's"),
        ({"model__distill__teacher": "nowhere"}, "model.distill.teacher"),
        ({"model__distill__scores": -1}, "a weight is not negative"),
        ({f"{E}towers": "separate"}, "model.distill.start"),
    ):
        if "model__loss" in options:
            options["data__negatives"] = None
        path = student(teacher, tmp_path, tiny_bert, **options)
        assert main(["fit", "--config", str(path)]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()


def test_a_trained_student_needs_no_teacher(teacher: Path, tmp_path: Path, tiny_bert: str) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(teacher, moved)
    path = student(moved, tmp_path, tiny_bert, run__id="student", trainer__max_epochs=1)
    with redirect_stdout(io.StringIO()):
        assert main(["fit", "--config", str(path)]) == 0
    rows = (tmp_path / "runs" / "killed" / "student" / "logs" / "metrics.csv").read_text().splitlines()
    assert {"train/teacher_scores", "train/teacher_vectors"} <= set(rows[0].split(","))
    shutil.rmtree(moved)
    module, data = load_run(str(tmp_path / "runs" / "killed" / "student"))
    assert module.encoder.anatomies["both"].depth == 1
    recommender = Recommender.from_run(tmp_path / "runs" / "killed" / "student")
    folder = recommender.save_pretrained(tmp_path / "export")
    users = [str(user) for user in data.data.user_ids[:3]]
    lists = [found.recommend(users, k=5) for found in (recommender, Recommender.from_pretrained(folder))]
    assert lists[0]["item_id"].to_pylist() == lists[1]["item_id"].to_pylist()
    np.testing.assert_allclose(lists[0]["score"].to_numpy(), lists[1]["score"].to_numpy(), rtol=1e-5)
    assert yaml.safe_load((folder / "recommender.yaml").read_text())["model"]["distill"] is None
    assert json.loads((folder / "encoder" / "config.json").read_text())["num_hidden_layers"] == 1


@pytest.mark.slow
def test_a_student_that_was_killed_ends_like_one_that_was_not(teacher: Path, tmp_path: Path, tiny_bert: str) -> None:
    ends = []
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        path = student(teacher, folder, tiny_bert, run__id="student", trainer__max_epochs=2)
        directory = folder / "runs" / "killed" / "student"
        if name == "killed":
            assert run(["fit", "--config", path], kill_at(JointRecommender, "training_step", 30)) == -9
            assert run(["fit", "--resume", directory]) == 0
        else:
            assert run(["fit", "--config", path]) == 0
        ends.append(left_by(directory))
    assert ends[0]["weights"] == ends[1]["weights"]
    assert ends[0]["metrics"] == ends[1]["metrics"]


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"model.distill.vectors"):
        Distillation("run", vectors=-0.1)
