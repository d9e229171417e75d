"""Weights from one format to another.

    python launch/convert.py --from lxrt Epoch09_LXRT.pth --answers data/lxmert/all_ans.json --to safetensors my_model

1. read every --from; the first that has a tensor gives it
2. print what matched the model, what is missing, unexpected, or of another shape; stop there unless it is allowed
3. write --to, which must not be there yet
"""

import sys
from pathlib import Path

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported
from engine.conversion.flags import parse_conversion
from engine.distributed.ranks import Ranks
from engine.importing import heavy_imports


@launch.program
def main(argv: list[str] | None = None) -> None:
    config = parse_conversion(sys.argv[1:] if argv is None else argv)
    Ranks.check_alone()
    with heavy_imports():
        from engine.conversion.convert import convert
    convert(config)


if __name__ == "__main__":
    main()
