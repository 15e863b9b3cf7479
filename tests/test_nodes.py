"""Two nodes: torchrun over two network namespaces that a cable joins, so that nothing is shared but the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmrs_lightning.cli import main

NODES, CABLES, ADDRESSES = ("llmrs-a", "llmrs-b"), ("llmrs-va", "llmrs-vb"), ("10.213.7.1", "10.213.7.2")
may = os.name == "posix" and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("ip") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not may, reason="two network namespaces need root and the command `ip`"),
]


def ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode:
        pytest.skip(f"network namespaces are not allowed here: {done.stderr.strip()}")


@pytest.fixture
def cable() -> Iterator[None]:
    """Join two network namespaces by a pair of virtual network cards."""
    for node in NODES:
        ip("netns", "del", node, check=False)
    try:
        for node in NODES:
            ip("netns", "add", node)
        ip("link", "add", CABLES[0], "type", "veth", "peer", "name", CABLES[1])
        for node, card, address in zip(NODES, CABLES, ADDRESSES, strict=True):
            ip("link", "set", card, "netns", node)
            ip("-n", node, "addr", "add", f"{address}/24", "dev", card)
            ip("-n", node, "link", "set", card, "up")
            ip("-n", node, "link", "set", "lo", "up")
        yield
    finally:
        for node in NODES:
            ip("netns", "del", node, check=False)


@pytest.fixture
def config(tiny_bert: str, tmp_path: Path) -> Path:
    options = {
        "run": {"experiment": "nodes", "folder": str(tmp_path), "wandb": "disabled", "checkpoint_every": 5},
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
        "model": {
            "encoder": {"class_path": "TextEncoder", "init_args": {"pretrained": tiny_bert, "dropout": 0}},
            "behaviour": {"class_path": "BehaviourFeatures", "init_args": {"id_dropout": 0}},
            "scorers": {"dnn": {"class_path": "DNNScorer", "init_args": {"dropout": 0}}},
            "optimizer": {"learning_rate": 0.003},
        },
        "data": {
            "source": {"class_path": "Checkerboard", "init_args": {"num_users": 31, "num_items": 17, "noise": 0.2}},
            "user_text": {"template": "{taste}"},
            "item_text": {"template": "{description}"},
            "batch_size": 30,
        },
    }
    path = tmp_path / "nodes.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def start(config: Path, port: int, *options: str, timeout: int = 60) -> list[subprocess.Popen[str]]:
    """Start torchrun on both nodes."""
    strategy = {"class_path": "pytorch_lightning.strategies.DDPStrategy", "init_args": {"timeout": f"0:00:{timeout}"}}
    launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launch += ["--master_addr", ADDRESSES[0], "--master_port", str(port)]
    fit = ["-m", "llmrs_lightning", "fit", "--config", str(config), "--trainer.num_nodes", "2"]
    fit += ["--trainer.strategy", json.dumps(strategy), *options]
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", node, sys.executable, *launch, "--node_rank", str(rank), *fit],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"GLOO_SOCKET_IFNAME": CABLES[rank], "OMP_NUM_THREADS": "1"},
        )
        for rank, node in enumerate(NODES)
    ]


def said(nodes: list[subprocess.Popen[str]], seconds: float) -> list[str]:
    return [node.communicate(timeout=seconds)[0] for node in nodes]


def results(config: Path, run: str) -> dict[str, Any]:
    return dict(json.loads((config.parent / "nodes" / run / "metrics.json").read_text())["test"])


def test_two_nodes_train_the_model_of_one_process(cable: None, config: Path) -> None:
    assert main(["fit", "--config", str(config), "--run.id", "one"]) == 0
    nodes = start(config, 29611)
    outputs = said(nodes, 300)
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    runs = sorted(path.name for path in (config.parent / "nodes").iterdir())
    assert len(runs) == 2  # the nodes have agreed on one run directory
    two = next(name for name in runs if name != "one")
    assert "test, best epoch" in outputs[0]
    assert "test, best epoch" not in outputs[1]
    for system, values in results(config, "one").items():
        assert results(config, two)[system] == pytest.approx(values, abs=1e-4, nan_ok=True), system


def test_a_lost_link_ends_in_an_error_and_the_run_goes_on(cable: None, config: Path) -> None:
    longer = ["--trainer.max_epochs", "12", "--run.patience", "12"]
    assert main(["fit", "--config", str(config), "--run.id", "one", *longer]) == 0
    nodes = start(config, 29621, "--run.id", "two", *longer, timeout=20)
    run = config.parent / "nodes" / "two"
    until = time.monotonic() + 200
    while not list(run.glob("checkpoints/last*.ckpt")) and time.monotonic() < until:
        assert all(node.poll() is None for node in nodes), said(nodes, 10)
        time.sleep(0.05)
    ip("-n", NODES[0], "link", "set", CABLES[0], "down")
    lost = time.monotonic()
    outputs = said(nodes, 200)
    assert time.monotonic() - lost < 150
    assert all(node.returncode for node in nodes)
    assert all("Error" in output for output in outputs), outputs
    assert list(run.glob("checkpoints/last*.ckpt"))
    assert not (run / "metrics.json").exists()

    ip("-n", NODES[0], "link", "set", CABLES[0], "up")
    nodes = start(config, 29631, "--run.id", "two", *longer, "--resume", str(run), timeout=20)
    outputs = said(nodes, 300)
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert "goes on from" in outputs[0]
    for system, values in results(config, "one").items():
        assert results(config, "two")[system] == pytest.approx(values, abs=1e-4, nan_ok=True), system
