"""Models of other programs, in homes made up in the forms that those write; nothing is changed."""

import json
import os
from hashlib import sha256
from pathlib import Path

import pytest

from eva_local.config import elsewhere
from eva_local.config.elsewhere import Held, held, named

DATA = b"GGUF\3\0\0\0"
LAYER = "application/vnd.ollama.image"
OLLAMA = "registry.ollama.example"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a home, and no service of ollama's but in it."""
    monkeypatch.setattr(elsewhere, "SERVICE_FOLDERS", (str(tmp_path / "service"),))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def held_as(name: str, environ: dict[str, str], home: Path) -> list[Path]:
    return [each.path for each in named(name, held(environ, home))]


def write(path: Path, data: bytes = DATA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def snapshot(hub: Path, repository: str, revision: str, *files: str, data: bytes = DATA) -> Path:
    """Write files as huggingface_hub does: a link for each to a blob named for its content."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    for file in files:
        content = data + file.encode()
        blob = write(folder / "blobs" / sha256(content).hexdigest(), content)
        link = folder / "snapshots" / revision / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder / "snapshots" / revision


def ollama(
    folder: Path, name: str, *, root: str = "manifests", mark: str = "-", data: bytes = DATA
) -> Path:
    """Write a model as ollama does, a manifest of several layers, and return its blob."""
    layers = []
    for kind, content in (
        ("template", b"{{ .Prompt }}"),
        ("projector", DATA + b"sees"),
        ("adapter", DATA + b"adapts"),
        ("model", data),
        ("license", b"MIT"),
    ):
        digest = sha256(content).hexdigest()
        blob = write(folder / "blobs" / f"sha256{mark}{digest}", content)
        layers.append({"mediaType": f"{LAYER}.{kind}", "digest": f"sha256:{digest}", "size": 1})
        if kind == "model":
            found = blob
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "x"},
        "layers": layers,
    }
    write(folder / root / name, json.dumps(manifest).encode())
    return found


def names(home: Path, **environ: str) -> list[str]:
    return [each.name for each in held(environ, home)]


def test_an_empty_home_holds_nothing(home: Path) -> None:
    assert held({}, home) == []
    assert held({}, home / "none") == []
    assert held_as("", {}, home) == held_as("a/b", {}, home) == []


def test_the_hub_cache(home: Path) -> None:
    hub = home / ".cache/huggingface/hub"
    files = ["Llama-3.2-1B-Instruct-Q4_K_M.gguf", "mmproj-F16.gguf", "README.md", "imatrix.gguf"]
    found = snapshot(hub, "bartowski/Llama-3.2-1B-GGUF", "a1", *files)
    (hub / "models--bert-base").mkdir()
    (hub / "datasets--some--set").mkdir()
    snapshot(hub, "only/mmproj", "b", "model.mmproj-Q8_0.gguf")
    path = found / "Llama-3.2-1B-Instruct-Q4_K_M.gguf"
    assert held({}, home) == [Held("bartowski/Llama-3.2-1B-GGUF:Q4_K_M", path, "Hugging Face")]
    for name in (
        "bartowski/Llama-3.2-1B-GGUF:Q4_K_M",
        "bartowski/llama-3.2-1b-gguf:q4_k_m",
        "hf.co/bartowski/Llama-3.2-1B-GGUF:Q4_K_M",
        "huggingface.co/bartowski/Llama-3.2-1B-GGUF:q4_k_m",
        "bartowski/Llama-3.2-1B-GGUF",
        "hf.co/bartowski/Llama-3.2-1B-GGUF",
    ):
        assert held_as(name, {}, home) == [path]
    for name in ("bartowski/Llama-3.2-1B-GGUF:Q8_0", "bartowski", "Llama-3.2-1B-GGUF", "bert-base"):
        assert held_as(name, {}, home) == []


def test_a_repository_of_several_models_stands_for_none(home: Path) -> None:
    hub = home / ".cache/huggingface/hub"
    found = snapshot(hub, "o/r", "a", "m-Q4_0.gguf", "m-Q8_0.gguf")
    assert names(home) == ["o/r:Q4_0", "o/r:Q8_0"]
    assert held_as("o/r", {}, home) == []
    assert held_as("o/r:Q8_0", {}, home) == [found / "m-Q8_0.gguf"]


@pytest.mark.parametrize(
    ("file", "tag"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("gemma-3-4b-it-q4_0.gguf", "Q4_0"),
        ("mistral-7b-instruct-v0.2.Q5_K_S.gguf", "Q5_K_S"),
        ("Model.i1-IQ2_XXS.gguf", "IQ2_XXS"),
        ("Model-IQ4_NL.gguf", "IQ4_NL"),
        ("Model-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("Model-TQ1_0.gguf", "TQ1_0"),
        ("UD-Q4_K_XL/Qwen3-UD-Q4_K_XL-00001-of-00001.gguf", "UD-Q4_K_XL"),
        ("Model-UD-IQ1_M.gguf", "UD-IQ1_M"),
        ("Model_bf16.gguf", "BF16"),
        ("Model-f16.gguf", "F16"),
        ("Model-fp16.gguf", "FP16"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("gpt-oss-20b-mxfp4_moe.gguf", "MXFP4_MOE"),
        ("Model-NVFP4.gguf", "NVFP4"),
        ("Model-F16-Q6_K_L.gguf", "Q6_K_L"),
        ("Model-Q4_K_M-imat.gguf", "Q4_K_M"),
        ("Model-Q4_K_M_imat.gguf", "Q4_K_M"),
        ("ggml-model.gguf", "ggml-model"),
        ("FAQ4all-00001-of-00001.gguf", "FAQ4all"),
    ],
)
def test_the_tag_is_the_quantisation(home: Path, file: str, tag: str) -> None:
    snapshot(home / ".cache/huggingface/hub", "o/r", "a", file)
    assert names(home) == [f"o/r:{tag}"]


def test_ud_may_be_left_out(home: Path) -> None:
    # llama.cpp calls it so.
    found = snapshot(
        home / ".cache/huggingface/hub", "o/r", "a", "m-UD-Q4_K_XL.gguf", "m-Q2_K.gguf"
    )
    assert held_as("o/r:Q4_K_XL", {}, home) == [found / "m-UD-Q4_K_XL.gguf"]


def test_of_several_parts_the_first_where_all_are_there(home: Path) -> None:
    hub = home / ".cache/huggingface/hub"
    parts = [f"BF16/m-BF16-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    found = snapshot(hub, "o/whole", "a", *parts)
    snapshot(hub, "o/lacking", "a", *parts[:2])
    assert held({}, home) == [Held("o/whole:BF16", found / parts[0], "Hugging Face")]


def test_the_revision_that_main_names_or_else_the_newest(home: Path) -> None:
    hub = home / ".cache/huggingface/hub"
    older = snapshot(hub, "o/r", "old", "m-Q4_0.gguf")
    newer = snapshot(hub, "o/r", "new", "m-Q4_0.gguf")
    (hub / "models--o--r/snapshots/.DS_Store").touch()
    os.utime(older, (1, 1))
    assert held_as("o/r", {}, home) == [newer / "m-Q4_0.gguf"]
    main = write(hub / "models--o--r/refs/main", b"old\n")
    assert held_as("o/r", {}, home) == [older / "m-Q4_0.gguf"]
    for broken in (b"gone", b"", b"\xff\xfe", b".", b"../../.."):
        main.write_bytes(broken)
        assert held_as("o/r", {}, home) == [newer / "m-Q4_0.gguf"]


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "{}/x", "HF_HOME": "{}/y"}, "x"),
        ({"HUGGINGFACE_HUB_CACHE": "{}/x", "HF_HOME": "{}/y"}, "x"),
        ({"HF_HUB_CACHE": "", "HF_HOME": "{}/x", "XDG_CACHE_HOME": "{}/y"}, "x/hub"),
        ({"HF_HOME": "~/x"}, "x/hub"),
        ({"XDG_CACHE_HOME": "{}/x"}, "x/huggingface/hub"),
        ({"LLAMA_CACHE": "{}/x"}, "x"),
    ],
)
def test_where_a_hub_cache_may_be(home: Path, environ: dict[str, str], folder: str) -> None:
    path = snapshot(home / folder, "o/r", "a", "m-Q4_0.gguf") / "m-Q4_0.gguf"
    snapshot(home / "y/hub", "o/other", "a", "m-Q4_0.gguf")
    snapshot(home / "y/huggingface/hub", "o/other", "a", "m-Q4_0.gguf")
    set_to = {name: value.format(home) for name, value in environ.items()}
    program = "llama.cpp" if "LLAMA_CACHE" in environ else "Hugging Face"
    assert held(set_to, home) == [Held("o/r:Q4_0", path, program)]


def test_one_cache_of_two_programs_is_told_once(home: Path) -> None:
    path = snapshot(home / "x", "o/r", "a", "m-Q4_0.gguf") / "m-Q4_0.gguf"
    environ = {"LLAMA_CACHE": str(home / "x"), "HF_HUB_CACHE": str(home / "x")}
    assert held(environ, home) == [Held("o/r:Q4_0", path, "Hugging Face")]


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({}, ".cache/llama.cpp"),
        ({"XDG_CACHE_HOME": "{}/x"}, "x/llama.cpp"),
        ({}, "Library/Caches/llama.cpp"),
        ({"LOCALAPPDATA": "{}/x"}, "x/llama.cpp"),
        ({"LLAMA_CACHE": "{}/x"}, "x"),
    ],
)
def test_the_cache_of_llama_cpp(home: Path, environ: dict[str, str], folder: str) -> None:
    cache = home / folder
    manifest = {
        "ggufFile": {"rfilename": "Q8_0/m-Q8_0.gguf"},
        "mmprojFile": {"rfilename": "mmproj.gguf"},
    }
    write(cache / "manifest=some-one=r_1-GGUF=Q8_0.json", json.dumps(manifest).encode())
    path = write(cache / "some-one_r_1-GGUF_Q8_0_m-Q8_0.gguf")
    write(path.with_name(f"{path.name}.etag"), b"x")
    write(cache / "some-one_r_1-GGUF_mmproj.gguf")
    manifest["ggufFile"]["rfilename"] = "m-Q4_K_M.gguf"
    write(cache / "manifest=o=latest=latest.json", json.dumps(manifest).encode())
    latest = write(cache / "o_latest_m-Q4_K_M.gguf")
    alone = write(cache / "o_r_alone-Q4_0.gguf")
    write(cache / "o_r_part-Q4_0.gguf.downloadInProgress")
    for i, broken in enumerate((b"", b"{", b"[]", b'{"ggufFile": {"rfilename": 3}}', b"[" * 99999)):
        write(cache / f"manifest=o=r=Q4_{i}.json", broken)
    write(cache / "manifest=o=r=Q4=0.json", json.dumps(manifest).encode())
    set_to = {name: value.format(home) for name, value in environ.items()}
    assert held(set_to, home) == [
        Held("o/latest:Q4_K_M", latest, "llama.cpp"),
        Held("o_r_alone-Q4_0.gguf", alone, "llama.cpp"),
        Held("some-one/r_1-GGUF:Q8_0", path, "llama.cpp"),
    ]
    assert held_as("hf.co/some-one/r_1-GGUF", set_to, home) == [path]
    assert held_as("O_R_alone-Q4_0.gguf", set_to, home) == [alone]


@pytest.mark.parametrize("told", [None, "", "{}/far\n", "far"])
@pytest.mark.parametrize("own", [".lmstudio", ".cache/lm-studio"])
def test_lm_studio(home: Path, told: str | None, own: str) -> None:
    if told is not None:
        (home / ".lmstudio-home-pointer").write_text(told.format(home))
    models = home / ("far" if told else own) / "models"
    path = write(models / "unsloth/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf")
    write(models / "unsloth/Qwen3-8B-GGUF/mmproj-F16.gguf")
    parts = [write(models / f"p/two/m-Q8_0-0000{i}-of-00002.gguf") for i in (1, 2)]
    other = write(models / "p/two/m-Q4_0.gguf")
    write(models / "misplaced.gguf")
    write(models / "p/three/downloading_m.gguf.part")
    assert held({}, home) == [
        Held("p/two/m-Q4_0.gguf", other, "LM Studio"),
        Held("p/two/m-Q8_0-00001-of-00002.gguf", parts[0], "LM Studio"),
        Held("unsloth/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf", path, "LM Studio"),
    ]
    assert held_as("unsloth/qwen3-8b-gguf/qwen3-8b-q4_k_m.gguf", {}, home) == [path]
    assert held_as("unsloth/Qwen3-8B-GGUF", {}, home) == [path]
    for name in ("p/two", "p", "unsloth", "unsloth/Qwen3"):
        assert held_as(name, {}, home) == []


def test_lm_studio_with_models_elsewhere(home: Path) -> None:
    settings = write(
        home / ".lmstudio/settings.json", b'{"downloadsFolder": "%b"}' % bytes(home / "d")
    )
    path = write(home / "d/p/r/m.gguf")
    (home / "d/q").symlink_to(home / "d/p")
    usual = write(home / ".lmstudio/models/p/usual/m.gguf")
    assert names(home) == ["p/r/m.gguf", "q/r/m.gguf"]
    assert held_as("p/r", {}, home) == [path]
    for broken in (b"{}", b"{", b'{"downloadsFolder": 3}', b'{"downloadsFolder": ""}', b"\xff"):
        settings.write_bytes(broken)
        assert held({}, home) == [Held("p/usual/m.gguf", usual, "LM Studio")]


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({}, "home/.ollama/models"),
        ({}, "service"),
        ({"OLLAMA_MODELS": "{}/x"}, "x"),
        ({"OLLAMA_MODELS": '"{}/x"'}, "x"),
    ],
)
@pytest.mark.parametrize("mark", ["-", ":"])
def test_ollama(home: Path, environ: dict[str, str], folder: str, mark: str) -> None:
    models = home.parent / folder

    def write_model(name: str, data: bytes) -> Path:
        return ollama(models, name, mark=mark, data=DATA + data)

    one = write_model(f"{OLLAMA}/library/llama3.2/1b", b"1")
    latest = write_model(f"{OLLAMA}/library/llama3.2/latest", b"3")
    own = write_model(f"{OLLAMA}/me/mine/latest", b"me")
    hub = write_model("hf.co/bartowski/R-GGUF/Q4_K_M", b"hub")
    local = write_model("localhost:5000/library/a/b", b"local")
    set_to = {name: value.format(home.parent) for name, value in environ.items()}
    assert held(set_to, home) == [
        Held("hf.co/bartowski/R-GGUF:Q4_K_M", hub, "ollama"),
        Held("llama3.2:1b", one, "ollama"),
        Held("llama3.2:latest", latest, "ollama"),
        Held("localhost:5000/library/a:b", local, "ollama"),
        Held("me/mine:latest", own, "ollama"),
    ]
    for name, path in {
        "llama3.2": latest,
        "Llama3.2:1B": one,
        "library/llama3.2": latest,
        f"{OLLAMA}/library/llama3.2:1b": one,
        "me/mine": own,
        "hf.co/bartowski/R-GGUF:q4_k_m": hub,
        "bartowski/R-GGUF:Q4_K_M": hub,
        "localhost:5000/library/a:b": local,
    }.items():
        assert held_as(name, set_to, home) == [path]
    # No tag is "latest" there, even where there is another alone.
    for name in ("hf.co/bartowski/R-GGUF", "localhost:5000/library/a", "mine", "a:b", "llama3"):
        assert held_as(name, set_to, home) == []


def test_ollama_of_the_newest_versions(home: Path) -> None:
    models = home / ".ollama/models"
    path = ollama(models, "ollama.example/library/m/7b", root="manifests-v2")
    link = models / "manifests-v2/ollama.example/library/m/8b"
    manifest = models / "manifests-v2/ollama.example/library/m/7b"
    link.symlink_to(
        os.path.relpath(write(models / "blobs/sha256-0", manifest.read_bytes()), link.parent)
    )
    # The same once more, as older versions keep it.
    ollama(models, f"{OLLAMA}/library/m/7b")
    assert held({}, home) == [Held("m:7b", path, "ollama"), Held("m:8b", path, "ollama")]


def test_a_name_of_two_programs_is_told_of_both(home: Path) -> None:
    one = snapshot(home / ".cache/huggingface/hub", "o/r", "a", "m-Q4_0.gguf") / "m-Q4_0.gguf"
    two = write(home / ".lmstudio/models/o/r/m-Q4_0.gguf")
    three = ollama(home / ".ollama/models", "hf.co/o/r/Q4_0")
    assert set(held_as("o/r", {}, home)) == {one, two}
    assert held_as("o/r:Q4_0", {}, home) == [one]
    assert held_as("hf.co/o/r:Q4_0", {}, home) == [three]


def test_broken_things_are_passed_over(home: Path) -> None:
    hub, models = home / ".cache/huggingface/hub", home / ".ollama/models"
    good = snapshot(hub, "o/good", "a", "m-Q4_0.gguf") / "m-Q4_0.gguf"
    for link in (
        hub / "models--o--dangling/snapshots/a/m.gguf",
        home / ".lmstudio/models/p/r/m.gguf",
    ):
        link.parent.mkdir(parents=True)
        link.symlink_to("../nowhere")
    loop = hub / "models--o--loop"
    loop.symlink_to(loop)
    (hub / "models--o--folder/snapshots/a/m.gguf").mkdir(parents=True)
    write(hub / "models--o--file")
    snapshot(hub, "o/empty", "a", "m.gguf", data=b"")
    write(hub / "models--o--html/snapshots/a/m.gguf", b"<html>")
    write(hub / "models--o--short/snapshots/a/m.gguf", b"GGU")
    write(home / ".cache/llama.cpp", b"a file")
    write(home / ".lmstudio-home-pointer", b"\0\xff")
    layer = {"mediaType": f"{LAYER}.model", "digest": "sha256:0"}
    absent, number = (json.dumps({"layers": [layer | more]}) for more in ({}, {"digest": 3}))
    manifests = ["", "{", "[]", "null", '{"layers": null}', '{"layers": [3]}', "[" * 99999]
    manifests += ['{"layers": {}}', '{"manifests": []}', absent, number]
    for i, broken in enumerate(manifests):
        write(models / f"manifests/{OLLAMA}/library/broken/{i}", broken.encode())
    (models / f"manifests/{OLLAMA}/library/folder/latest").mkdir(parents=True)
    write(models / "manifests/.DS_Store", b"")
    ollama(models, f"{OLLAMA}/library/tensors/latest", data=b'{"safetensors": 1}')
    assert held({}, home) == [Held("o/good:Q4_0", good, "Hugging Face")]
    write(home / ".lmstudio-home-pointer", b"\0")
    assert held({"HF_HOME": "\ud800", "LLAMA_CACHE": "~nobody"}, home) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_shut_folders_are_passed_over(home: Path) -> None:
    hub = home / ".cache/huggingface/hub"
    good = snapshot(hub, "o/good", "a", "m-Q4_0.gguf") / "m-Q4_0.gguf"
    snapshot(hub, "o/shut", "a", "m-Q4_0.gguf")
    ollama(home / ".ollama/models", f"{OLLAMA}/library/m/7b")
    write(home.parent / "service/manifests/a/b/c/d", b"{}")
    write(home / ".lmstudio/settings.json", b"{}").chmod(0)
    model = write(home / ".lmstudio/models/p/r/m.gguf")
    shut = [hub / "models--o--shut", home / ".ollama/models", home.parent / "service", model]
    modes = [path.stat().st_mode for path in shut]
    try:
        for mode in (0, 0o444):
            for path in shut:
                path.chmod(mode if path != model else 0)
            assert held({}, home) == [Held("o/good:Q4_0", good, "Hugging Face")]
    finally:
        for path, before in zip(shut, modes, strict=True):
            path.chmod(before)


def test_nothing_is_changed(home: Path) -> None:
    snapshot(home / ".cache/huggingface/hub", "o/r", "a", "m-Q4_0.gguf")
    ollama(home / ".ollama/models", f"{OLLAMA}/library/m/7b")
    write(home / ".lmstudio/models/p/r/m.gguf")
    before = [(path, path.lstat().st_mtime_ns) for path in sorted(home.rglob("*"))]
    assert len(held({}, home)) == 3
    assert [(path, path.lstat().st_mtime_ns) for path in sorted(home.rglob("*"))] == before
