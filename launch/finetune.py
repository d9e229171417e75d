"""Fine-tune CLIP-ViL on one of the tasks that answer questions about images.

deepspeed --num_gpus 4 launch/finetune.py --task vqa --recipe vqa_rn50x4
deepspeed --num_gpus 4 launch/finetune.py --task gqa --recipe gqa_rn50x4
deepspeed --num_gpus 4 launch/finetune.py --task snli_ve --recipe snli_ve_rn50x4

Each recipe begins with the last checkpoint of its backbone's stage two; --load_lxmert_qa PATH, or for snli_ve
--load_lxmert PATH, begins with another one.

--task NAME --help tells the flags of a task, --version all versions, for a report of a bug.
"""

import sys
from pathlib import Path

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported
from engine.tasks.named import picked_task
from engine.training.program import train


@launch.program
def main() -> None:
    train(*picked_task(sys.argv[1:], str(__doc__)))


if __name__ == "__main__":
    main()
