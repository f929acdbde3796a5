"""The memory that this process may still take."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Bytes that can be taken without swapping, within the limit of a container; None where the system does not say.

    Example:
        >>> found = available_bytes()
        >>> found is None or found > 0
        True
    """
    left = [n for n in (_of_machine(), _of_container()) if n is not None]
    return max(min(left), 0) if left else None


def _of_machine() -> int | None:
    kib = _numbers(_MEMINFO).get("MemAvailable:")
    return None if kib is None else 1024 * kib


def _of_container() -> int | None:
    """What cgroup v2 leaves; cached files that nobody has used lately are given back when memory is asked for."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return limit - used + _numbers(_CGROUP / "memory.stat").get("inactive_file", 0)


def _numbers(path: Path) -> dict[str, int]:
    """The lines of a file that are a name and a number."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    return {parts[0]: int(parts[1]) for parts in lines if len(parts) > 1 and parts[1].isdigit()}
