"""Answer VQA's questions with a fine-tuned model: a score, or the leaderboard's file.

python launch/predict_vqa.py --load snap/vqa/NAME/BEST --test minival
deepspeed --num_gpus 4 launch/predict_vqa.py --load snap/vqa/NAME/BEST --test test
python launch/predict_vqa.py --load snap/vqa/NAME/BEST --question "What is this?" --image photo.jpg
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

import launch  # noqa: F401  says what isn't installed, before anything else is imported
from engine.configuration.parsing import parse_command
from engine.distributed.leaving import telling_errors
from engine.distributed.ranks import Ranks
from engine.importing import heavy_imports
from engine.tasks.answering.flags import PredictConfig


def main() -> None:
    with telling_errors():
        ranks = Ranks.from_environment()
        config = parse_command(PredictConfig, "predict_vqa.py", sys.argv[1:])
        config.check()
        with heavy_imports():
            from engine.tasks.answering.prediction import run
        run(config, ranks)


if __name__ == "__main__":
    main()
