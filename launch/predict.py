"""Answer the questions of a task with a fine-tuned model: a score, or the leaderboard's file. Or write features.

python launch/predict.py --task gqa --load snap/gqa/NAME/BEST --test testdev
deepspeed --num_gpus 4 launch/predict.py --task gqa --load snap/gqa/NAME/BEST --test submit
python launch/predict.py --task snli_ve --load snap/snli_ve/NAME/BEST --question "Two dogs play." --image photo.jpg
python launch/predict.py --load snap/pretrain/NAME --pairs own/captions.jsonl --features own/features.safetensors

--task NAME --help tells the flags of a task, --version all versions, for a report of a bug.
"""

import sys
from pathlib import Path

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported
from engine.tasks.answering.program import predict
from engine.tasks.named import picked_task


@launch.program
def main() -> None:
    predict(*picked_task(sys.argv[1:], str(__doc__), of_no_task="--pairs"))


if __name__ == "__main__":
    main()
