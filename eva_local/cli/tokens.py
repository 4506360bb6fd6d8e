"""What tokens map to: `show --token`."""

from __future__ import annotations

import contextlib
from typing import Any

import click
import numpy as np

from eva_local.alignment import library
from eva_local.alignment.mapping import Mapping
from eva_local.config.specs import EnsembleSpec
from eva_local.errors import InputError
from eva_local.llama.llama_model import LlamaModel
from eva_local.models.store import locate

# Symbols that are shown of a row.
_SHOWN = 5


def token_facts(spec: EnsembleSpec, text: str) -> list[dict[str, Any]]:
    """Return each member's tokens of `text`, and where every mapping that is built sends them."""
    if not text:
        raise InputError("--token needs some text, such as --token ' unbelievable'")
    with contextlib.ExitStack() as stack:
        models = [
            stack.enter_context(LlamaModel(locate(member), vocabulary_only=True))
            for member in spec.members
        ]
        pivot = models[spec.pivot_index]
        return [
            {"member": member.name, "tokens": _tokens(model, pivot, text.encode())}
            for member, model in zip(spec.members, models, strict=True)
        ]


def print_facts(facts: list[dict[str, Any]]) -> None:
    """Print what `token_facts` found, the methods under each other."""
    for member in facts:
        click.echo(f"{member['member']}:")
        for token in member["tokens"]:
            click.echo(f"  token {token['id']} {token['piece']} maps to")
            if not token["maps_to"]:
                click.echo("    no mapping is built yet; run: eva-local align")
            for method, entries in token["maps_to"].items():
                shown = "  ".join(f"{piece} {weight:.3f}" for piece, weight in entries)
                click.echo(f"    {method:16} {shown or 'nothing'}")


def _tokens(model: LlamaModel, pivot: LlamaModel, text: bytes) -> list[dict[str, Any]]:
    tables = _mappings(model, pivot)
    symbols = [*pivot.vocabulary.pieces, b""]
    return [
        {
            "id": token_id,
            "piece": _shown(model.vocabulary.pieces[token_id]),
            "maps_to": {name: _row(table, token_id, symbols) for name, table in tables.items()},
        }
        for token_id in model.tokenizer.encode(text)
    ]


def _mappings(model: LlamaModel, pivot: LlamaModel) -> dict[str, Mapping]:
    """Return the mappings of a pair that need not be built first."""
    if model.vocabulary.fingerprint == pivot.vocabulary.fingerprint:
        return {"identity": library.identity(pivot)}
    paths = {m: library.find(m, model, pivot, library.mapping_folders()) for m in library.METHODS}
    return {m: library.read(path, model, pivot) for m, path in paths.items() if path}


def _row(mapping: Mapping, token_id: int, symbols: list[bytes]) -> list[tuple[str, float]]:
    found, weights = mapping.row(token_id)
    order = np.argsort(-weights, kind="stable")[:_SHOWN]
    return [(_shown(symbols[found[i]]), float(weights[i])) for i in order]


def _shown(piece: bytes) -> str:
    """Write bytes so that spaces, control characters and half characters can be seen."""
    return repr(piece.decode("utf-8", "backslashreplace")) if piece else "END"
