"""Answer VQA's questions with a fine-tuned model, as launch/predict.py --task vqa does.

python launch/predict_vqa.py --load snap/vqa/NAME/BEST --test minival
deepspeed --num_gpus 4 launch/predict_vqa.py --load snap/vqa/NAME/BEST --test test
python launch/predict_vqa.py --load snap/vqa/NAME/BEST --question "What is this?" --image photo.jpg
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

import launch  # noqa: F401  says what isn't installed, before anything else is imported
from engine.tasks.answering.program import main
from engine.tasks.vqa import Vqa

if __name__ == "__main__":
    main(Vqa)
