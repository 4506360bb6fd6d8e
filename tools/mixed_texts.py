"""Write 200 short texts of five kinds as rows for `eval`, a like number of each.

    .venv/bin/python -m tools.mixed_texts FOLDER >mixed.jsonl

FOLDER has rows of WikiText-2, E2E, FLORES and GSM8K (docs/results.md says whence). Prose is the
middle of articles, news and descriptions are the answers, sums are the questions, and code is from
the first function of modules of Python's standard library.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_EACH, _LONG = 40, 200


def _rows(folder: Path, name: str) -> Iterator[dict[str, object]]:
    with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _texts(folder: Path) -> dict[str, list[str]]:
    articles = [str(row["text"]) for row in _rows(folder, "wikitext2")]
    thirds = [text[len(text) * n // 3 :] for n in (1, 2) for text in articles]
    library = Path(sysconfig.get_path("stdlib"))
    modules = [path.read_text("utf-8") for path in sorted(library.glob("[a-z]*.py"))]
    news = [row["answers"] for row in _rows(folder, "flores_fr_en")]
    told = [row["answers"] for row in _rows(folder, "e2e")]
    return {
        "prose": [text.partition("\n ")[2] for text in thirds],
        "code": [text[text.index("\ndef ") + 1 :] for text in modules if "\ndef " in text],
        "news": [str(answers[0]) for answers in news if isinstance(answers, list)],
        "descriptions": [str(answers[0]) for answers in told if isinstance(answers, list)],
        "sums": [str(row["question"]) for row in _rows(folder, "gsm8k")],
    }


def main() -> None:
    """Write the rows."""
    for kind, texts in _texts(Path(sys.argv[1])).items():
        enough = [text for text in texts if len(text) > _LONG // 2][:_EACH]
        for number, text in enumerate(enough):
            print(json.dumps({"id": f"{kind} {number}", "text": text[:_LONG]}))


if __name__ == "__main__":
    main()
