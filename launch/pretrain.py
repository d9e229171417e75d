"""Pre-train CLIP-ViL.

deepspeed --num_gpus 8 launch/pretrain.py --recipe rn50_stage_one
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

import launch  # noqa: F401  says what isn't installed, before anything else is imported
from engine.tasks.pretraining import Pretraining
from engine.training.program import main

if __name__ == "__main__":
    main(Pretraining)
