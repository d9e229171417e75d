"""Answer the questions of a task with a fine-tuned model: a score, or the leaderboard's file.

python launch/predict.py --task gqa --load snap/gqa/NAME/BEST --test testdev
deepspeed --num_gpus 4 launch/predict.py --task gqa --load snap/gqa/NAME/BEST --test submit
python launch/predict.py --task snli_ve --load snap/snli_ve/NAME/BEST --question "Two dogs play." --image photo.jpg

--task NAME --help tells the flags of a task.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

import launch  # noqa: F401  says what isn't installed, before anything else is imported
from engine.tasks.answering.program import main
from engine.tasks.named import picked_task

if __name__ == "__main__":
    main(*picked_task(sys.argv[1:], str(__doc__)))
