"""Fine-tune CLIP-ViL on VQA v2, as launch/finetune.py --task vqa does.

deepspeed --num_gpus 4 launch/finetune_vqa.py --recipe vqa_rn50x4 --load_lxmert_qa snap/pretrain/NAME/Epoch11
"""

import sys
from pathlib import Path

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported
from engine.tasks.vqa import Vqa
from engine.training.program import train


@launch.program
def main() -> None:
    train(Vqa)


if __name__ == "__main__":
    main()
