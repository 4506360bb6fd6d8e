"""Appends records to a file in a process of its own, in small writes, and may die of it.

Arguments: the file, this writer's name, how many records, how many bytes a write takes, after how
many calls of functions it is killed (0: never), and `turns` or `alone`. It begins when standard
input ends. What is written for good is said on standard output, a number a line.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from eva_local.jsonl import JsonlFile


def killed_after(calls: int) -> None:
    """Kill this process at its call number `calls`."""
    left = calls

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal left
        left -= event in ("call", "c_call")
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def main(path: str, name: str, count: str, size: str, calls: str, way: str) -> None:
    write = os.write

    def small(descriptor: int, data: bytes) -> int:
        return write(descriptor, bytes(data[: int(size)]))

    os.write = small
    sys.stdin.read()
    if int(calls):
        killed_after(int(calls))
    file = JsonlFile(Path(path), "cannot be written", busy="busy" if way == "alone" else None)
    if way == "alone":
        file.mend()
    for number in range(int(count)):
        file.append({"writer": name, "number": number, "text": "é" * (number % 7)})
        write(1, b"%d\n" % number)
    file.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
