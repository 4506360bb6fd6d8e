"""What `align` says of the mappings of an ensemble."""

from __future__ import annotations

import json
from pathlib import Path

from eva_local.alignment import quality
from eva_local.cli import main


def test_a_row_and_an_object_for_each_mapping(models: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("EVA_LOCAL_CACHE", str(tmp_path))
    # Its sample is longer than the context of these models.
    monkeypatch.setattr(quality, "retained_mass", lambda *_: 0.5)
    align = ["--config", str(models / "models.toml"), "align", "-e", "pair", "--method", "surface"]
    assert main(align) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0] == "MEMBER"
    assert row.split()[:4] == ["two", "one", "surface", "built"]
    assert row.split()[8] == "50.0%"
    assert main([*align, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["member"], found["state"], found["seconds"]) == ("two", "here", None)
    assert 0 < found["mapped"] <= 1
    assert Path(found["path"]).stat().st_size == found["bytes"]
    assert found["held_out_rank_1"] is None


def test_one_vocabulary_needs_no_mapping(models: Path, tmp_path, capsys) -> None:
    config = tmp_path / "models.toml"
    config.write_text(
        f"schema = 1\nmodels.a.path = '{models}/one.gguf'\nmodels.b.path = '{models}/one.gguf'\n"
        "ensembles.same.members = ['a', 'b']\ndefaults.n_ctx = 128\n"
    )
    align = ["--config", str(config), "align", "-e", "same"]
    assert main(align) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["b", "a", "-", "shared"]
    assert main([*align, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["mapped"], found["path"], found["retained"]) == (1.0, None, None)
