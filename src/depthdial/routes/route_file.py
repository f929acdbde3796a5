"""The file that names a route of an unmodified checkpoint: an export for vLLM writes it, and the vLLM plugin reads it.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depthdial.files import Document
from depthdial.routes import Route
from depthdial.routes.families import restored_routes, stored_routes

ROUTE_FILE = "depthdial_route.json"
# The checkpoint of a route file that stands beside the weights.
HERE = "."
_FILE = Document("depthdial-route", 1, "route", "write one with `depthdial export --to vllm`")


@dataclass(frozen=True)
class RouteFile:
    """The contents of `depthdial_route.json`.

    Attributes:
        route: the layers that run, of the `n_layers` of the checkpoint.
        model: what the model is called.
        checkpoint: folder or Hub id of the weights of all layers; `.` for the folder that the file stands in.
        weights_hash, dtype: `hf.weights.weights_hash` of those weights, and the type, such as `float32`, it was taken in.
        adapter: what is merged into the weights; None for the model as it was published.

    Example:
        >>> from depthdial.routes.route_file import RouteFile
        >>> file = RouteFile(dd.Route((0, 1, 5), 6), "mine", "./mine", "0" * 64, "float32")
        >>> RouteFile.load(file.save(folder)) == file
        True
    """

    route: Route
    model: str
    checkpoint: str
    weights_hash: str
    dtype: str
    adapter: str | None = None

    def save(self, folder: Path | str) -> Path:
        """Write the file into a folder, by atomic rename."""
        (entry,) = stored_routes([self.route])
        fields = {**vars(self), "route": entry, "layers": list(self.route.layers), "n_layers": self.route.n_layers}
        return _FILE.write(Path(folder) / ROUTE_FILE, fields)

    @classmethod
    def load(cls, path: Path | str) -> RouteFile:
        """Read a file that `save` wrote, or the one in a folder.

        Raises:
            InputError: if there is none, or it is damaged or of another kind.
        """
        path = Path(path)
        return _FILE.read(path / ROUTE_FILE if path.is_dir() else path, cls._of)

    @classmethod
    def _of(cls, document: Mapping[str, Any]) -> RouteFile:
        (route,) = restored_routes([document["route"]], document["n_layers"])
        texts = {name: document[name] for name in ("model", "checkpoint", "weights_hash", "dtype")}
        adapter = document.get("adapter")
        if not all(isinstance(text, str) and text for text in (*texts.values(), adapter or "none")):
            raise TypeError(f"{', '.join(texts)} and adapter are texts")
        return cls(route, **texts, adapter=adapter)

    def folder(self, path: Path | str) -> str:
        """Where the checkpoint is: a Hub id, or a folder; `path` is where this file was read from."""
        if self.checkpoint != HERE:
            return self.checkpoint
        path = Path(path)
        return str(path if path.is_dir() else path.parent)
