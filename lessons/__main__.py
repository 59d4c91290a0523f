"""
python -m lessons check FILE ...     judges an exercise, or a new update rule of your own
"""
import sys

from lessons import check

COMMANDS = {"check": check.main}


def main(argv: list) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    return COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
