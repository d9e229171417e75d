"""Fine-tune CLIP-ViL on one of the tasks that answer questions about images.

deepspeed --num_gpus 4 launch/finetune.py --task vqa --recipe vqa_rn50x4
deepspeed --num_gpus 4 launch/finetune.py --task gqa --recipe gqa_rn50x4
deepspeed --num_gpus 4 launch/finetune.py --task snli_ve --recipe snli_ve_rn50x4

Each recipe begins with the last checkpoint of its backbone's stage two; --load_lxmert_qa PATH, or for snli_ve
--load_lxmert PATH, begins with another one. --task NAME --help tells the flags of a task.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

import launch  # noqa: F401  says what isn't installed, before anything else is imported
from engine.tasks.named import picked_task
from engine.training.program import main

if __name__ == "__main__":
    main(*picked_task(sys.argv[1:], str(__doc__)))
