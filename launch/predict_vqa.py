"""Answer VQA's questions with a fine-tuned model, as launch/predict.py --task vqa does.

python launch/predict_vqa.py --load snap/vqa/NAME/BEST --test minival
deepspeed --num_gpus 4 launch/predict_vqa.py --load snap/vqa/NAME/BEST --test test
python launch/predict_vqa.py --load snap/vqa/NAME/BEST --question "What is this?" --image photo.jpg
"""

import sys
from pathlib import Path

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported
from engine.tasks.answering.program import predict
from engine.tasks.vqa import Vqa


@launch.program
def main() -> None:
    predict(Vqa)


if __name__ == "__main__":
    main()
