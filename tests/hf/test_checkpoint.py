"""Which files are loaded, from a folder and from the Hub; the Hub is played by functions, there is no network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from hypothesis import given
from hypothesis import strategies as st

from depthdial.errors import InputError
from depthdial.hf.checkpoint import check_adapter, check_folder, choose_weights, hub_snapshot, wanted_files

SAFE = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
BIN = ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"]
SMALL = ["config.json", "generation_config.json", "tokenizer.json", "merges.txt", "tokenizer.model"]
JUNK = ["README.md", "tf_model.h5", "model.fp16.safetensors", "onnx/model.onnx", "original/params.json", "run.py", "x.pt"]


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def write_index(folder: Path, name: str, *shards: str) -> None:
    (folder / name).write_text(json.dumps({"weight_map": {f"w{i}": shard for i, shard in enumerate(shards)}}))


@given(st.permutations([*SAFE, "pytorch_model.bin", *SMALL, *JUNK]), st.booleans())
def test_safetensors_win_whatever_the_order_and_the_permission(names: list[str], allow_bin: bool) -> None:
    weights = choose_weights(names, "m", allow_bin=allow_bin)
    assert (weights.format, weights.names) == ("safetensors", tuple(SAFE))


def test_one_file_wins_over_shards() -> None:
    assert choose_weights(["model.safetensors", *SAFE], "m", allow_bin=False).names == ("model.safetensors",)


@pytest.mark.parametrize("names", [["pytorch_model.bin"], BIN])
def test_pickled_weights_need_permission(names: list[str]) -> None:
    with pytest.raises(InputError, match=r"m has only pickled weights .*--allow-bin"):
        choose_weights([*names, *SMALL], "m", allow_bin=False)
    weights = choose_weights([*names, *SMALL], "m", allow_bin=True)
    assert (weights.format, weights.names) == ("bin", tuple(names))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (SMALL, "m has no weights"),
        (["model-00001-of-00002.safetensors"], "m has no weights"),
        (["a.gguf"], "only GGUF weights"),
        (["adapter_config.json", "adapter_model.safetensors"], "PEFT adapter.*adapter="),
    ],
)
def test_what_cannot_be_loaded_is_named(names: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        choose_weights(names, "m", allow_bin=True)


def test_only_what_loading_needs_is_wanted() -> None:
    names = [*SAFE, *BIN, *SMALL, *JUNK, "additional_chat_templates/tool.jinja"]
    wanted = wanted_files(names, "m", allow_bin=False, trust_remote_code=False)
    assert wanted == sorted([*SAFE, *SMALL, "additional_chat_templates/tool.jinja"])
    assert set(wanted_files(names, "m", allow_bin=False, trust_remote_code=True)) - set(wanted) == {"run.py"}


def test_a_whole_folder_passes(tmp_path: Path) -> None:
    folder = touch(tmp_path, "config.json", *SAFE)
    write_index(folder, SAFE[0], *SAFE[1:])
    assert check_folder(folder, "m", allow_bin=False).names == tuple(SAFE)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = touch(tmp_path, "config.json", *SAFE[:2])
    write_index(folder, SAFE[0], *SAFE[1:])
    with pytest.raises(InputError, match=f"m lacks {SAFE[2]}"):
        check_folder(folder, "m", allow_bin=False)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "{"])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    folder = touch(tmp_path, "config.json", *SAFE)
    (folder / SAFE[0]).write_text(text)
    with pytest.raises(InputError, match="cannot be read as the index"):
        check_folder(folder, "m", allow_bin=False)


@pytest.mark.parametrize("shard", ["evil.bin", "../model-00001-of-00002.safetensors", "pytorch_model-00001-of-00001.bin"])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, shard: str) -> None:
    folder = touch(tmp_path, "config.json", *SAFE, "evil.bin", "pytorch_model-00001-of-00001.bin")
    write_index(folder, SAFE[0], SAFE[1], shard)
    with pytest.raises(InputError, match="not a safetensors shard"):
        check_folder(folder, "m", allow_bin=True)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        check_folder(touch(tmp_path, "model.safetensors"), "m", allow_bin=False)


@pytest.mark.parametrize("beside", [[], ["config.json", "model.safetensors"]])
def test_an_adapter_folder_is_no_model(tmp_path: Path, beside: list[str]) -> None:
    folder = touch(tmp_path, "adapter_model.safetensors", *beside)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    with pytest.raises(InputError, match=r"PEFT adapter of owner/base: .*adapter='m'"):
        check_folder(folder, "m", allow_bin=False)


def test_adapters_must_be_safetensors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no adapter folder"):
        check_adapter(tmp_path / "none")
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        check_adapter(tmp_path)
    with pytest.raises(InputError, match="holds a whole model and no adapter: load it as the model"):
        check_adapter(touch(tmp_path / "whole", "config.json", "model.safetensors"))
    touch(tmp_path, "adapter_config.json", "adapter_model.bin")
    with pytest.raises(InputError, match="safe_serialization=True"):
        check_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    touch(tmp_path, "adapter_model.safetensors")
    assert check_adapter(tmp_path) == tmp_path


class FakeHub:
    """The two calls that are made of huggingface_hub, over a folder that plays the cache."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.names, self.error = cache, ["config.json", "model.safetensors", "README.md"], None
        self.downloads: list[dict] = []
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, repo_id: str, *, revision: str | None = None, timeout: float | None = None):
        assert timeout is not None and timeout <= 30, "a Hub out of reach must not hang a load"
        if self.error is not None:
            raise self.error
        return SimpleNamespace(sha="c0ffee", siblings=[SimpleNamespace(rfilename=name) for name in self.names])

    def snapshot_download(self, repo_id, *, revision=None, allow_patterns=None, local_files_only=False, etag_timeout=10):
        if local_files_only:
            if not all((self.cache / name).exists() for name in allow_patterns):
                raise LocalEntryNotFoundError("not there")
            return str(self.cache)
        self.downloads.append({"revision": revision, "files": allow_patterns})
        if isinstance(self.error, OSError):
            raise self.error
        touch(self.cache, *allow_patterns)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(tmp_path / "cache", monkeypatch)


def snapshot(repo_id: str = "owner/name", **options) -> Path:
    return hub_snapshot(repo_id, **({"revision": None, "allow_bin": False, "trust_remote_code": False} | options))


def answer() -> SimpleNamespace:
    # The HTTP library differs between versions of huggingface_hub; its errors read no more of a response than this.
    return SimpleNamespace(headers={}, request=None)


def test_the_hub_is_asked_for_what_is_needed_and_only_once(hub: FakeHub) -> None:
    assert snapshot(revision="v1") == hub.cache
    assert hub.downloads == [{"revision": "v1", "files": ["config.json", "model.safetensors"]}]
    assert snapshot(revision="v1") == hub.cache
    assert len(hub.downloads) == 1
    (hub.cache / "model.safetensors").unlink()
    snapshot()
    assert len(hub.downloads) == 2


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("offline"), TimeoutError("slow"), RuntimeError("any library's")])
def test_without_the_hub_its_cache_serves(hub: FakeHub, error: Exception) -> None:
    hub.error = error
    with pytest.raises(InputError, match=r"Hub is out of reach .*owner/name is neither"):
        snapshot()
    touch(hub.cache, "config.json")
    assert snapshot() == hub.cache
    assert hub.downloads == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (lambda: RepositoryNotFoundError("x", response=answer()), "no such model"),
        (lambda: GatedRepoError("x", response=answer()), "owner/name is gated.*hf auth login"),
        (lambda: RevisionNotFoundError("x", response=answer()), "no revision 'v9'"),
    ],
)
def test_what_the_hub_answers_is_one_sentence(hub: FakeHub, error, words: str) -> None:
    hub.error = error()
    touch(hub.cache, "config.json")
    with pytest.raises(InputError, match=words):
        snapshot(revision="v9")


def test_a_name_that_cannot_be_an_id() -> None:
    with pytest.raises(InputError, match="neither a local folder"):
        snapshot("not a name!")


def test_a_broken_download_says_so(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args, **_options):
        raise ConnectionResetError("gone")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(InputError, match=r"download of owner/name failed \(ConnectionResetError\)"):
        snapshot()


def test_hub_repositories_without_usable_weights(hub: FakeHub) -> None:
    hub.names = ["config.json", "pytorch_model.bin"]
    with pytest.raises(InputError, match="--allow-bin"):
        snapshot()
    hub.names = ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(InputError, match="pass its folder as adapter="):
        snapshot()
    assert hub.downloads == []
