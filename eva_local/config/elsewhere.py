"""GGUF models that other programs hold, by the names that those give them: read where they lie."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eva_local.config.specs import REPOSITORY, part_names

MAGIC = b"GGUF"
# Of ollama's service, as its installer sets it up and as distributions do.
SERVICE_FOLDERS = ("/usr/share/ollama/.ollama/models", "/var/lib/ollama", "/var/lib/ollama/models")
_MODEL_LAYER = "application/vnd.ollama.image.model"
# What can be raised where a file of another program is broken, of another form, or out of reach.
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
# OWNER/REPO or OWNER/REPO:TAG, maybe with a host before it, or the page of a file on a host.
HUB_NAME = re.compile(
    rf"(?:https?://[^/]+/|(?:hf|huggingface)\.\w+/)?({REPOSITORY})(?<!\.gguf)"
    r"(?:/(?:blob|resolve)/([^/]+)/([^?#]+)|:([\w.-]+))?/?(?:[?#].*)?"
)
# What lies beside models: parts that see or hear, importance matrices, drafters.
BESIDE = re.compile(r"mmproj|imatrix|^(mtp|eagle3|dflash|dspark)-", re.IGNORECASE)
_QUANTISATION = re.compile(
    r"(?<![A-Z0-9])(?:UD-)?(?:I?Q\d(?:_(?:\d|K|NL|X*[SML])(?![A-Z0-9]))*|TQ\d_\d|B?FP?(?:16|32)"
    r"|(?:MX|NV)FP4(?:_MOE)?)(?![A-Z0-9])"
)


@dataclass(frozen=True, slots=True)
class Held:
    """A model of another program: its name there, and its file, the first of several."""

    name: str
    path: Path
    program: str


def is_gguf(path: Path) -> bool:
    """Return whether a file begins as GGUF files do; one that cannot be read does not."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def held(environ: Mapping[str, str], home: Path) -> list[Held]:
    """List the models that other programs hold, by name; what is broken is left out."""

    def at(variable: str, default: Path) -> Path:
        written = environ.get(variable, "").strip("\"' ")
        return home / written[2:] if written.startswith("~/") else Path(written or default)

    cache = at("XDG_CACHE_HOME", home / ".cache")
    hub = at("HUGGINGFACE_HUB_CACHE", at("HF_HOME", cache / "huggingface") / "hub")
    own = at("LLAMA_CACHE", cache / "llama.cpp")  # newer versions keep it in the hub's form
    found = [*_hub(at("HF_HUB_CACHE", hub), "Hugging Face"), *_hub(own, "llama.cpp")]
    for folder in (own, home / "Library/Caches/llama.cpp", at("LOCALAPPDATA", cache) / "llama.cpp"):
        found += _llama_cpp(folder)
    found += _lm_studio(home)
    services = () if environ.get("OLLAMA_MODELS") else map(Path, SERVICE_FOLDERS)
    for folder in (at("OLLAMA_MODELS", home / ".ollama/models"), *services):
        found += _ollama(folder)
    once = {(each.name.casefold(), each.path.resolve()): each for each in reversed(found)}
    return sorted(once.values(), key=lambda each: (each.name.casefold(), each.path))


def named(name: str, models: Sequence[Held]) -> list[Held]:
    """Return those of a name; if none, of what it is short for."""
    wanted = _short(name)
    for called in (str.casefold, _short, lambda each: _short(each).removesuffix(":latest")):
        if same := [each for each in models if called(each.name) == called(name)]:
            return same
    # A repository stands for the model in it where it holds one only.
    names = (f"{wanted}:", f"{wanted}/") if "/" in wanted else ()
    inside = [each for each in models if _short(each.name).startswith(names)]
    count = Counter(each.program for each in inside)
    return [each for each in inside if count[each.program] == 1 and each.program != "ollama"]


def tag(path: Path) -> str:
    """Return the quantisation that a file is named for, the last of several; else its stem."""
    stem = path.stem.partition("-00001-of-")[0]
    found: list[str] = _QUANTISATION.findall(stem.upper())
    return found[-1] if found else stem


def _short(name: str) -> str:
    """Leave out what may be left out: the hub's host, ollama's and its library, UD- of a tag."""
    host, _, rest = (name := name.casefold()).partition("/")
    is_known = "." in host and ("ollama" in host or host.startswith(("hf.", "huggingface.")))
    return (rest if is_known else name).removeprefix("library/").replace(":ud-", ":")


def _hub(folder: Path, program: str) -> Iterator[Held]:
    for repository in _listed(folder, "models--*"):
        revisions = {each.name: each for each in _listed(repository, "snapshots/*/")}
        chosen = [*revisions.values()][-1:]
        with suppress(*_BROKEN):
            chosen = [revisions[(repository / "refs/main").read_text("utf-8").strip()]]
        name = repository.name.removeprefix("models--").replace("--", "/")
        for revision in chosen:
            for path in _listed(revision, "**/*.gguf"):
                yield Held(f"{name}:{tag(path)}", path, program)


def _llama_cpp(folder: Path) -> Iterator[Held]:
    names: dict[str, str] = {}
    for manifest in _listed(folder, "manifest=*=*=*.json"):
        with suppress(*_BROKEN):
            _, owner, repository, called = manifest.stem.split("=")
            file = json.loads(manifest.read_bytes())["ggufFile"]["rfilename"]
            called = tag(Path(file)) if called == "latest" else called
            file = f"{owner}_{repository}_{file}".replace("/", "_")
            names[file] = f"{owner}/{repository}:{called}"
    for path in _listed(folder, "*.gguf"):
        yield Held(names.get(path.name, path.name), path, "llama.cpp")


def _lm_studio(home: Path) -> Iterator[Held]:
    homes = [home / ".lmstudio", home / ".cache/lm-studio"]
    with suppress(*_BROKEN):
        told = (home / ".lmstudio-home-pointer").read_text("utf-8").strip()
        homes = [home / told] if told else homes
    for each in homes:
        folder = each / "models"
        with suppress(*_BROKEN):
            told = json.loads((each / "settings.json").read_bytes())["downloadsFolder"]
            folder = home / (told or folder)
        for path in _listed(folder, "*/*/*.gguf"):
            yield Held(path.relative_to(folder).as_posix(), path, "LM Studio")


def _ollama(folder: Path) -> Iterator[Held]:
    for manifest in _listed(folder, "manifests/*/*/*/*") + _listed(folder, "manifests-v2/*/*/*/*"):
        host, space, model, tag = manifest.parts[-4:]
        space = f"{space}/".removeprefix("library/") if "ollama" in host else f"{host}/{space}/"
        with suppress(*_BROKEN):
            layers = json.loads(manifest.read_bytes())["layers"]
            digests = [each["digest"] for each in layers if each["mediaType"] == _MODEL_LAYER]
            names = [form for each in digests for form in (each.replace(":", "-"), each)]
            whole = [*filter(is_gguf, (folder / "blobs" / each for each in names))]
            yield Held(f"{space}{model}:{tag}", whole[0], "ollama")


def _listed(folder: Path, pattern: str) -> list[Path]:
    """Return what is in a folder, the newest last; of GGUF files, the first of each whole model."""
    found: list[Path] = []
    with suppress(*_BROKEN):
        found = sorted(folder.glob(pattern), key=lambda path: path.lstat().st_mtime_ns)
    if not pattern.endswith(".gguf"):
        return found
    parts = {path: part_names(path.name) for path in found if not BESIDE.search(path.name)}
    firsts = {path: names for path, names in parts.items() if path.name == names[0]}
    return [path for path in firsts if all(is_gguf(path.with_name(each)) for each in firsts[path])]
