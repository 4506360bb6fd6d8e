"""A model of a repository on the hub: which file is taken, and that all of it arrives."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from model_sources import COMMIT, Hub, hub_spec, serve

from eva_local.config.specs import HubSource, ModelSpec
from eva_local.errors import StoreError
from eva_local.models import store
from eva_local.models.download import ask

DATA = b"GGUF" + random.Random(0).randbytes(3 << 20)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path / "cache"))
    # Whatever a pull makes of it, other tests find the library's own.
    size = huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", size)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
    return tmp_path / "cache" / "models"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(DATA)
    with serve(hub) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield hub


def chosen(hub: Hub, quant: str, *files: str) -> str:
    hub.listed = list(files)
    return ask("owner/model", "", "", quant)[0].file


@pytest.mark.parametrize(
    ("quant", "files", "expected"),
    [
        ("", ["m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"], "m-Q4_K_M.gguf"),
        ("", ["m-Q2_K.gguf", "m-q8_0.gguf"], "m-q8_0.gguf"),
        ("", ["README.md", "m-Q2_K.gguf", "m-Q3_K_S.gguf"], "m-Q2_K.gguf"),
        ("", ["imatrix.gguf", "mmproj-F16.gguf", "mtp-m-Q4_K_M.gguf", "z.gguf"], "z.gguf"),
        ("", ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], "m-00001-of-00002.gguf"),
        ("q4_k_m", ["m-Q2_K.gguf", "m-Q4_K_M.gguf"], "m-Q4_K_M.gguf"),
        ("Q8_0", ["m-Q8_0.bin", "mmproj-Q8_0.gguf", "m.Q8_0.gguf"], "m.Q8_0.gguf"),
        ("Q4_K_XL", ["m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf"], "m-UD-Q4_K_XL.gguf"),
        ("Q4_K", ["m-Q4_K_M.gguf", "m-Q4_K.gguf"], "m-Q4_K.gguf"),
        ("F16", ["m-BF16.gguf", "m-F16.gguf"], "m-F16.gguf"),
        ("Q6_K", ["m-Q6_K/m-Q6_K-00001-of-00001.gguf"], "m-Q6_K/m-Q6_K-00001-of-00001.gguf"),
        ("it", ["m-base.gguf", "m-it.gguf"], "m-it.gguf"),
    ],
)
def test_the_file_is_the_one_that_llama_cpp_takes(
    hub: Hub, quant: str, files: list[str], expected: str
) -> None:
    assert chosen(hub, quant, *files) == expected


def test_what_is_not_there_is_told_with_what_is(hub: Hub) -> None:
    files = ("m-IQ1_S.gguf", "m-Q4_0-00001-of-00002.gguf", "m-Q4_0-00002-of-00002.gguf")
    with pytest.raises(StoreError) as caught:
        chosen(hub, "Q4_K_M", *files, "mmproj-Q8_0.gguf")
    assert str(caught.value) == "owner/model has no Q4_K_M; it has IQ1_S, Q4_0"
    for quant in ("", "Q8_0"):
        with pytest.raises(StoreError, match=r"owner/model has no .*; it has no GGUF file of a"):
            chosen(hub, quant, "mmproj-Q8_0.gguf", "README.md")
    with pytest.raises(StoreError, match=r"at main has no file 'm-Q4_0-00002-of-00002\.gguf'"):
        chosen(hub, "Q4_0", *files[:2])
    with pytest.raises(StoreError, match="owner/model at main has no file 'no/such file"):
        ask("owner/model", "main", "no/such%20file.gguf", "")


def test_a_part_that_is_named_stands_for_all(hub: Hub) -> None:
    hub.others = {f"a/m-0000{n}-of-00002.gguf": b"GGUF" * n for n in (1, 2)}
    source = HubSource("owner/model", "a/m-00001-of-00002.gguf", COMMIT)
    hub.about = {"tags": ["gguf", "license:mit"]}
    assert ask("owner/model", COMMIT, "a/m-00002-of-00002.gguf", "") == (source, 12, "mit")
    hub.about["cardData"] = {"license": "apache-2.0"}
    assert ask("owner/model", "", "", "m")[2] == "apache-2.0"
    hub.about = {}
    assert ask("owner/model", "", "sub/m.gguf", "") == (hub_spec().source, len(DATA), "")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ((403, "GatedRepo"), "pull: owner/model at main is gated; accept its terms on the hub"),
        ((401, ""), "pull: the hub refuses owner/model at main (401); is it private? then run: hf"),
        ((404, "RepoNotFound"), "pull: the hub has no owner/model; is it private?"),
        ((404, "RevisionNotFound"), "pull: the hub has no owner/model at main"),
        ((500, ""), "pull: the hub answered 500; pull again"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, error: tuple[int, str], told: str) -> None:
    hub.error = error
    with pytest.raises(StoreError) as caught:
        ask("owner/model", "", "", "")
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("seed", range(3))
def test_three_parts_that_are_cut_anywhere_arrive_whole(hub: Hub, cache: Path, seed: int) -> None:
    """Every pull breaks off; what it brought is kept, and the next one goes on from there."""
    draw = random.Random(seed)
    hub.others = {
        f"q4/m-Q4_K_M-0000{n}-of-00003.gguf": b"GGUF" + draw.randbytes(draw.randrange(1, 3 << 20))
        for n in (1, 2, 3)
    }
    source, size, _ = ask("owner/model", "", "", "Q4_K_M")
    assert size == sum(map(len, hub.others.values()))
    spec, hub.breaking, pulls = ModelSpec("m", source, size=size), True, 0
    while store.find(spec) is None:
        hub.broken, hub.cut_at = False, [draw.randrange(1, 2 << 20)]
        pulls += 1
        with contextlib.suppress(StoreError):
            store.pull(spec)
        assert pulls < 60
    assert pulls > 1
    files = sorted(cache.glob("*.gguf"))
    assert [file.read_bytes() for file in files] == list(hub.others.values())
    assert store.verify(spec).status == "ok"
    # What had arrived was not asked for again.
    begun = [int(span.removeprefix("bytes=").rstrip("-")) for _, span in hub.gets if span]
    assert max(begun) > 0


@pytest.mark.parametrize("megabytes", [1, 11])
def test_a_pull_goes_on_after_a_megabyte_as_after_ten(hub: Hub, megabytes: int) -> None:
    hub.data = b"GGUF" + random.Random(1).randbytes(12_000_000)
    hub.cut_at, hub.breaking = [megabytes * 1_000_000], True
    with pytest.raises(StoreError, match="pull again"):
        store.pull(hub_spec())
    hub.broken = False
    assert store.pull(hub_spec()).read_bytes() == hub.data
    begun = int((hub.gets[-1][1] or "").removeprefix("bytes=").rstrip("-"))
    assert megabytes * 1_000_000 - (1 << 18) < begun <= megabytes * 1_000_000
