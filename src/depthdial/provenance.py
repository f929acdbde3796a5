"""Provenance: software, hardware and code revision, as one record that every row carries."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest(settings: Mapping[str, Any]) -> str:
    """Short SHA-256 of settings, the same whatever the order of their keys."""
    text = json.dumps(settings, sort_keys=True, default=str, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def versions() -> str:
    """Python and the libraries that decide about results, as `name=version` pairs."""
    names = ("depthdial", "torch", "transformers", "tokenizers", "numpy", "rouge-score")
    pairs = [("python", platform.python_version()), *((name, _version(name)) for name in names)]
    return " ".join(f"{name}={version}" for name, version in pairs)


@functools.cache
def hardware() -> str:
    """Processor, usable cores and threads, and the accelerator where there is one."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [_processor(), f"{cores} cores", f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


@functools.cache
def commit() -> str:
    """Git revision of this package's checkout (`+` where files differ from it), or `release VERSION` outside one."""
    package = Path(__file__).parent
    revision = _git(package, "rev-parse", "--short=12", "HEAD")
    # A virtual environment inside somebody else's checkout must not pass for that checkout.
    if not revision or _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return f"release {_version('depthdial')}"
    return revision + ("+" if _git(package, "status", "--porcelain", "--untracked-files=no", ".") else "")


def environment() -> dict[str, str]:
    """Everything of this module, for a row or a report."""
    return {"versions": versions(), "hardware": hardware(), "commit": commit()}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
