"""A subject of the campaign whose cases go wrong in all ways, for the one who must notice that."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from random import Random

from eva_local.errors import InputError
from tools.fire.campaign import WrongError

#: What a case may do.
WAYS = ("right", "refused", "wrong", "raised", "silent", "killed", "hungry", "hangs")


class Doomed:
    """A case says what becomes of it."""

    samples = (b"right",)

    def __init__(self, _folder: Path, _models: Path) -> None:
        self.kept: list[bytes] = []

    def case(self, chance: Random) -> bytes:
        return chance.choice(WAYS).encode()

    def judge(self, data: bytes) -> bool:
        match data.decode():
            case "refused":
                raise InputError("it is refused")
            case "wrong":
                raise WrongError("it is wrong")
            case "raised":
                raise KeyError("nobody says what")
            case "silent":
                raise InputError("")
            case "killed":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "hungry":
                # Written to, so that it is really there.
                self.kept.append(os.urandom(1 << 20) * 300)
                self.kept.clear()
            case "hangs":
                time.sleep(600)
        return True

    def close(self) -> None:
        pass
