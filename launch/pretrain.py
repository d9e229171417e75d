"""Pre-train CLIP-ViL.

deepspeed --num_gpus 8 launch/pretrain.py --recipe rn50_stage_one
"""

import sys
from pathlib import Path

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported
from engine.tasks.pretraining import Pretraining
from engine.training.program import train


@launch.program
def main() -> None:
    train(Pretraining)


if __name__ == "__main__":
    main()
