"""What `show --token` says of a text's tokens."""

from __future__ import annotations

import json
from pathlib import Path

from eva_local.alignment import library
from eva_local.cli import main
from eva_local.llama.llama_model import LlamaModel


def test_where_each_members_tokens_go(models: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path))
    show = ["--config", str(models / "models.toml"), "show", "pair", "--token", " the light"]
    assert main(show) == 0
    pivot, member = capsys.readouterr().out.split("two:")
    assert pivot.startswith("one:\n")
    assert pivot.count("    identity ") == pivot.count("  token ") > 1
    assert member.count("  token ") != pivot.count("  token "), "only one has this word"
    assert "no mapping is built yet; run: eva-local align" in member
    with (
        LlamaModel(models / "two.gguf", vocabulary_only=True) as two,
        LlamaModel(models / "one.gguf", vocabulary_only=True) as one,
    ):
        library.build("surface", two, one, library.mapping_folders()[0])
    assert main([*show, "--json"]) == 0
    of_pivot, of_member = json.loads(capsys.readouterr().out)
    assert [of_pivot["member"], of_member["member"]] == ["one", "two"]
    the = of_member["tokens"][0]
    assert (the["piece"], the["maps_to"]) == ("' the'", {"surface": [["' the'", 1.0]]})
    assert main([*show[:-1], ""]) == 2
