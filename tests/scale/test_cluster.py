"""What a process gets of a cluster, and errors that come from one; without Ray. With it: see test_on_ray."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from depthdial.errors import InputError
from depthdial.scale.cluster import Share, own_errors, share_of
from depthdial.scale.settings import RaySettings


@pytest.mark.parametrize(
    ("resources", "actors", "share"),
    [
        ({"CPU": 8.0}, None, Share(2, 4, 0)),
        ({"CPU": 1.0}, None, Share(1, 1, 0)),
        ({"CPU": 8.0}, 3, Share(3, 2, 0)),
        ({"CPU": 16.0, "GPU": 4.0}, None, Share(4, 4, 1)),
        ({"CPU": 16.0, "GPU": 1.0}, 2, Share(2, 8, 0.5)),
        ({"CPU": 16.0, "GPU": 4.0}, 2, Share(2, 8, 1)),
    ],
)
def test_processes_share_the_processors(resources, actors, share):
    assert share_of(SimpleNamespace(cluster_resources=lambda: resources), RaySettings(ray_actors=actors)) == share


def test_more_processes_than_processors_are_refused():
    with pytest.raises(InputError, match="Ray has 2 CPUs for 3 processes: give a smaller --ray-actors"):
        share_of(SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0}), RaySettings(ray_actors=3))


def test_an_input_error_of_a_process_is_the_callers():
    """Ray gives the error of a process as the cause of its own."""
    for name in ("cause", "__cause__"):
        outer = RuntimeError("a task failed, and so on for many lines")
        setattr(outer, name, InputError("The disk is full: make room."))
        with pytest.raises(InputError, match=r"^The disk is full: make room.$"), own_errors():
            raise outer
    with pytest.raises(RuntimeError, match=r"^something else$"), own_errors():
        raise RuntimeError("something else")
