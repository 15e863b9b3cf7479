"""How much memory is free, and a bound beyond which an allocation fails, so that no process is killed for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from llmrs_lightning.errors import ConfigError

_PROC = Path("/proc")
#: of control groups: where they are, and their files of limit, use, and of the use what could be dropped
_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@contextmanager
def bounded(device: torch.device, share: float) -> Iterator[None]:
    """Have allocations on a device fail that take more than a share of what is free now.

    On the processor the system is asked to refuse them (RLIMIT_DATA), which Linux alone does.

    Raises:
        ConfigError: If there is no bound for such a device here.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        most = (torch.cuda.memory_reserved(device) + share * free) / total
        torch.cuda.set_per_process_memory_fraction(most, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    elif device.type == "cpu" and (_PROC / "meminfo").exists():
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = _kibibytes(_PROC / "self/status", "VmData") + int(share * free_memory())
        known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([most, *known]), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    else:
        raise ConfigError(
            "here a process that takes too much memory is killed, so it cannot be tried",
            where="data.batch_size",
            found=f"auto, on {device.type}",
            allowed="a number; auto on a CUDA device, and on processors under Linux",
        )


def free_memory() -> int:
    """Return the bytes of the machine that this process may still take, by /proc and its control groups."""
    free = [_kibibytes(_PROC / "meminfo", "MemAvailable")]
    words = (_PROC / "self/cgroup").read_text().split() if (_PROC / "self/cgroup").exists() else []
    for root, limit, used, idle in _GROUPS:
        paths = {root, *(root / word.split(":", 2)[2].lstrip("/") for word in words if word.count(":") > 1)}
        for folder in {parent for path in paths for parent in (path, *path.parents) if parent.is_relative_to(root)}:
            with suppress(OSError, ValueError):  # not there, or without a limit
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                taken = int((folder / used).read_text()) - int(stat.get(idle, 0))
                free.append(int((folder / limit).read_text()) - taken)
    return max(min(free), 0)


def _kibibytes(file: Path, name: str) -> int:
    """Read a line such as `VmData:  12 kB`, in bytes."""
    lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024
