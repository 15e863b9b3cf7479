"""The model card of an exported recommender: what it is, how good it is, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrs_lightning.data.datamodule import RecDataModule
from llmrs_lightning.data.schema import PARTS
from llmrs_lightning.recommend.folder import CONFIG, ENCODER, MANIFEST, WEIGHTS
from llmrs_lightning.recommend.origin import Origin
from llmrs_lightning.training.module import JointRecommender

_CARD = """---
library_name: llmrs_lightning
tags:
- recommendation
- recommender-systems
---

# Recommender

{what} Written by [llmrs_lightning](https://github.com/llmrs-lightning/llmrs_lightning).

```python
from llmrs_lightning.recommend import Recommender

recommender = Recommender.from_pretrained("this folder, or org/name of this repository")
print(recommender.recommend([{user!r}], k=10).to_pylist())
```

It needs nothing but this folder: no network, no data files, no other weights.

## What it is

{facts}

## How good it is

{metrics}

## Files

| file | what is in it |
|---|---|
{files}

**The tables hold ids of users and what they did.** Share the folder only with those who may see that.

## Versions

{versions}
"""


def card(module: JointRecommender, data: RecDataModule, origin: Origin, packages: Mapping[str, str]) -> str:
    """Write the card.

    Args:
        module: The model.
        data: What it knows.
        origin: Where it comes from.
        packages: Versions by package.
    """
    users, items, events = len(data.data.users), len(data.data.items), len(data.rows(*PARTS))
    members = ", ".join(f"`{name}` ({type(scorer).__name__})" for name, scorer in module.members.items())
    facts = {
        "members": members,
        "fusion": type(module.fusion).__name__ if len(module.members) > 1 else "",
        "loss": type(module.loss).__name__,
        **origin.trained,
        "knows": f"{users:,} users, {items:,} items, {events:,} interactions",
    }
    files = {
        CONFIG: "the configuration of model and data; paths are relative to the folder",
        WEIGHTS: "all weights but those of the language model",
        "data/": "users, items, and interactions with the part of the split that each belongs to",
        MANIFEST: "format version, and size and hash of each file",
    }
    if data.tokenizer:
        how = "`AutoModel` and `AutoTokenizer` load it; it has no pooler, and what LoRA learned is merged"
        files = {f"{ENCODER}/": f"the language model in the format of transformers: {how}"} | files
    return _CARD.format(
        what=f"Ranks {items:,} items for {users:,} known users" + (", or for a new one." if module.encoder else "."),
        user=str(data.data.user_ids[0]),
        facts="\n".join(f"* {name}: {text}" for name, text in facts.items() if text),
        metrics=_metrics(origin.metrics.get("test", {})),
        files="\n".join(f"| `{name}` | {text} |" for name, text in files.items()),
        versions=", ".join(f"{name} {version}" for name, version in packages.items()),
    )


def _metrics(systems: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of metrics by system."""
    if not systems:
        return "It was not tested."
    rows = [
        [name, *(_number(metrics.get(name)) for metrics in systems.values())]
        for name in dict.fromkeys(name for metrics in systems.values() for name in metrics)
    ]
    lines = [["metric", *systems], ["---"] * (len(systems) + 1), *rows]
    return "Of the test part:\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"
