"""Find the mapping of a pair of members, or build and keep it."""

import logging
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

import numpy as np

from eva_local.alignment import embedding, mapping
from eva_local.alignment.mapping import REMEDY, Mapping, Progress, from_entries, twins
from eva_local.config.config import shipped
from eva_local.errors import MappingError
from eva_local.llama.model import Model
from eva_local.models.store import cache_folder

log = logging.getLogger("eva_local")

# From the tokenizers of a member and the pivot, or their output layers: see `BY_EMBEDDING`.
METHODS: Table[str, Callable[[Any, Any, Progress | None], Mapping]] = {
    "surface": mapping.surface,
    "surface-refined": mapping.surface_refined,
    "eva": embedding.eva,
    "eva-paper": embedding.eva_paper,
}
# Methods that rest on embeddings, whose overlay can be tested on anchors that are held out, and
# the parameters that they have now.
BY_EMBEDDING: Table[str, Table[str, Any]] = {
    "eva": embedding.PARAMETERS,
    "eva-paper": embedding.PAPER_PARAMETERS,
}
# Under this share of pieces in common a pair of members hardly understands each other.
_FEW_TWINS = 0.05


def mapping_folders() -> list[Path]:
    """Return where mappings are looked for; new ones go into the first."""
    return [cache_folder() / "mappings", shipped("mappings")]


def find_or_build(
    method: str,
    member: Model,
    pivot: Model,
    folders: Sequence[Path],
    progress: Progress | None = None,
) -> Mapping:
    """Return the mapping from `member` to `pivot`.

    Looks into `folders` in turn; builds it into the first one, with a message, where none holds
    it. Members with equal vocabularies need no file. Raises MappingError for a file that is
    damaged, stale, or for other vocabularies.
    """
    if member.vocabulary.fingerprint == pivot.vocabulary.fingerprint:
        return identity(pivot)
    path = find(method, member, pivot, folders)
    if path is None:
        path = folders[0] / file_name(method, member, pivot)
        log.info("building the mapping %s, once", path.name)
        sides: tuple[Any, Any] = member.tokenizer, pivot.tokenizer
        if method in BY_EMBEDDING:
            sides = embedding.output_layer(member), embedding.output_layer(pivot)
        METHODS[method](*sides, progress).save(path)
    found = Mapping.load(path)
    if (found.member, found.pivot) != (member.vocabulary.fingerprint, pivot.vocabulary.fingerprint):
        raise MappingError(f"{path}: made for other vocabularies; {REMEDY}")
    if found.parameters != BY_EMBEDDING.get(found.method, {}):
        raise MappingError(f"{path}: made with other parameters; {REMEDY}")
    return found


def find(method: str, member: Model, pivot: Model, folders: Sequence[Path]) -> Path | None:
    """Return the file of a mapping in the first folder that has it."""
    candidates = (folder / file_name(method, member, pivot) for folder in folders)
    return next((path for path in candidates if path.exists()), None)


def identity(model: Model) -> Mapping:
    """Return the mapping of a vocabulary onto itself."""
    vocabulary = model.vocabulary
    rows = np.flatnonzero(vocabulary.speakable)
    return from_entries("identity", vocabulary, vocabulary, rows, rows, np.ones(len(rows)))


def file_name(method: str, member: Model, pivot: Model) -> str:
    """Name the file that holds the mapping of a pair."""
    prints = (model.vocabulary.fingerprint[:12] for model in (member, pivot))
    return "-".join((method, *prints)) + ".npz"


def share_of_twins(member: Model, pivot: Model) -> float:
    """Return the share of the member's speakable tokens whose bytes the pivot has as a token."""
    speakable = member.vocabulary.speakable
    return float(np.mean(twins(member.vocabulary, pivot.vocabulary)[speakable] >= 0))


def warn_if_foreign(name: str, member: Model, pivot_name: str, pivot: Model) -> None:
    """Log a warning where the two vocabularies have almost nothing in common."""
    if (share := share_of_twins(member, pivot)) < _FEW_TWINS:
        log.warning(
            "only %.1f%% of the pieces of %s are pieces of %s: its vote will be mostly noise; "
            "choose members with vocabularies that are closer",
            *(100 * share, name, pivot_name),
        )
