"""What tokens map to, and what maps to a symbol: `show --token`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from eva_local.alignment import library
from eva_local.errors import InputError
from eva_local.llama.llama_model import LlamaModel
from eva_local.models.store import locate

if TYPE_CHECKING:
    from eva_local.alignment.mapping import Mapping
    from eva_local.config.specs import EnsembleSpec
    from eva_local.llama.vocab import Vocabulary

# Entries that are shown of a row or a column.
_SHOWN = 5

Facts = list[dict[str, Any]]


def token_facts(spec: EnsembleSpec, text: str) -> Facts:
    """Return, for each member, its tokens of `text` under every mapping that is built.

    For a token: the symbols that its mass goes to. For the pivot's symbols of the same text:
    the member's tokens that send mass there.
    """
    if not text:
        raise InputError("--token needs some text, such as --token ' unbelievable'")
    with contextlib.ExitStack() as stack:
        models = [
            stack.enter_context(LlamaModel(locate(member), vocabulary_only=True))
            for member in spec.members
        ]
        pivot = models[spec.pivot_index]
        return [
            _member_facts(member.name, model, pivot, text.encode())
            for member, model in zip(spec.members, models, strict=True)
            if model is not pivot
        ]


def _member_facts(name: str, model: LlamaModel, pivot: LlamaModel, text: bytes) -> dict[str, Any]:
    tables = _mappings(model, pivot)
    return {
        "member": name,
        "tokens": [
            {
                "id": token_id,
                "piece": _shown(model.vocabulary.pieces[token_id]),
                "maps_to": {m: _row(table, token_id, pivot) for m, table in tables.items()},
            }
            for token_id in model.tokenizer.encode(text)
        ],
        "symbols": [
            {
                "id": symbol,
                "piece": _shown(pivot.vocabulary.pieces[symbol]),
                "mapped_from": {m: _column(table, symbol, model) for m, table in tables.items()},
            }
            for symbol in pivot.tokenizer.encode(text)
        ],
    }


def _mappings(model: LlamaModel, pivot: LlamaModel) -> dict[str, Mapping]:
    """Return the mappings of a pair that need not be built first."""
    if model.vocabulary.fingerprint == pivot.vocabulary.fingerprint:
        return {"identity": library.identity(pivot)}
    paths = {m: library.find(m, model, pivot, library.mapping_folders()) for m in library.METHODS}
    return {m: library.read(path, model, pivot) for m, path in paths.items() if path}


def _row(mapping: Mapping, token_id: int, pivot: LlamaModel) -> list[tuple[str, float]]:
    symbols, weights = mapping.row(token_id)
    order = np.argsort(-weights, kind="stable")[:_SHOWN]
    return [(_symbol(pivot.vocabulary, int(symbols[i])), float(weights[i])) for i in order]


def _column(mapping: Mapping, symbol: int, model: LlamaModel) -> list[tuple[str, float]]:
    places = np.flatnonzero(mapping.indices == symbol)
    order = places[np.argsort(-mapping.weights[places], kind="stable")][:_SHOWN]
    rows = np.searchsorted(mapping.indptr, order, side="right") - 1
    sources = [
        (_shown(model.vocabulary.pieces[row]), float(mapping.weights[place]))
        for row, place in zip(rows.tolist(), order.tolist(), strict=True)
    ]
    if len(mapping.first) and mapping.first[symbol] >= 0:
        piece = model.vocabulary.pieces[int(mapping.first[symbol])]
        sources.append((f"{_shown(piece)} (split by the pivot)", 1.0))
    return sources


def _symbol(vocabulary: Vocabulary, symbol: int) -> str:
    return "END" if symbol == len(vocabulary) else _shown(vocabulary.pieces[symbol])


def _shown(piece: bytes) -> str:
    """Write bytes so that spaces, control characters and half characters can be seen."""
    return repr(piece.decode("utf-8", "backslashreplace"))


def print_facts(facts: Facts) -> None:
    """Print what `token_facts` found, the methods under each other."""
    for member in facts:
        click.echo(f"{member['member']}:")
        for token in member["tokens"]:
            _print_entry(f"token {token['id']} {token['piece']} maps to", token["maps_to"])
        for symbol in member["symbols"]:
            _print_entry(f"symbol {symbol['id']} {symbol['piece']} gets", symbol["mapped_from"])


def _print_entry(title: str, methods: dict[str, list[tuple[str, float]]]) -> None:
    click.echo(f"  {title}")
    if not methods:
        click.echo("    no mapping is built yet; run: eva-local align")
    for method, entries in methods.items():
        shown = "  ".join(f"{piece} {weight:.3f}" for piece, weight in entries) or "nothing"
        click.echo(f"    {method:16} {shown}")
