"""The command line: `eva-local`, or `python -m eva_local`."""

import sys


def main() -> int:
    """Run the command line, and return its exit code."""
    try:
        # Here, so that Ctrl-C while all of it is imported is no traceback either.
        from eva_local import cli
    except KeyboardInterrupt:
        print("eva-local: interrupted", file=sys.stderr)  # noqa: T201  # click is not there yet
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
