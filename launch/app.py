"""A page on this machine to try trained models on photos of your own.

    python launch/app.py --load snap/vqa/NAME/BEST
    python launch/app.py --load snap/vqa/NAME/BEST,snap/pretrain/NAME/Epoch09 --port 8080

It prints the address to open in a browser. Ctrl-C ends it.
"""

import sys
from pathlib import Path

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported
from engine.app.command import run
from engine.app.flags import AppConfig
from engine.configuration.parsing import parse_command
from engine.distributed.ranks import Ranks


@launch.program
def main(argv: list[str] | None = None) -> None:
    config = parse_command(AppConfig, sys.argv[1:] if argv is None else argv)
    config.check()
    Ranks.check_alone()
    run(config)


if __name__ == "__main__":
    main()
