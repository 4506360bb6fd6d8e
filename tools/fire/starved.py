"""Run a command in a process that may take only so many MiB more than it has: MIB COMMAND."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from eva_local import cli
from eva_local.llama.backend import library


def main() -> int:
    """Import what the command needs, set the limit, run it."""
    import eva_local.batch.job
    import eva_local.opening
    import eva_local.trace

    del eva_local
    library()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + int(float(sys.argv[1]) * (1 << 20))
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
