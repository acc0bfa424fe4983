"""Checks that run in several processes at once, which start once for all of them."""

from __future__ import annotations

import datetime
import importlib
import multiprocessing
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

LIMIT = 240  # seconds


def names_of(module: ModuleType) -> list[str]:
    """Return the names of a module's checks, functions of a shared folder that every process calls."""
    return [name for name in vars(module) if name.startswith("check_")]


def _work(rank: int, world: int, folder: Path, modules: Sequence[str]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=datetime.timedelta(seconds=60))
    for module in map(importlib.import_module, modules):
        for name in names_of(module):
            (folder / name).mkdir(exist_ok=True)
            try:
                getattr(module, name)(folder / name)
                said = ""
            except Exception:  # the parent shows it
                said = traceback.format_exc()
            (folder / f"{name}.{rank}").write_text(said)
            if said:  # the others wait for this process, and fail too
                return
            dist.barrier()
    dist.destroy_process_group()


def failures(world: int, modules: Sequence[ModuleType]) -> dict[str, str]:
    """Run the checks of these modules in ``world`` processes; return what failed first, by name."""
    context: Any = multiprocessing.get_context("forkserver")  # its processes share one import of torch
    files = [module.__name__ for module in modules]
    context.set_forkserver_preload(["torch._dynamo", "torch.distributed.tensor._api", *files])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = [context.Process(target=_work, args=(rank, world, folder, files)) for rank in range(world)]
        for process in started:
            process.start()
        for process in started:
            process.join(LIMIT)
            if process.is_alive():
                process.kill()
        for check in (check for module in modules for check in names_of(module)):
            if text := _said(folder, check, world):
                return {check: text}
    return {}


def _said(folder: Path, check: str, world: int) -> str:
    files = [folder / f"{check}.{rank}" for rank in range(world)]
    return "\n".join(file.read_text() if file.exists() else f"{file.name} did not end" for file in files).strip()
