"""Pre-train CLIP-ViL.

deepspeed --num_gpus 8 launch/pretrain.py --recipe rn50_stage_one
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

from engine import training
from engine.config import PretrainConfig
from engine.data.annotation_source import AnnotationSource
from engine.data.answers import AnswerTable
from engine.data.pretraining import PretrainingDataset, PretrainingOptions
from engine.data.splits import annotation_files
from engine.task import Task

RECIPES = Path(__file__).parent / "recipes"


class Pretraining(Task[PretrainConfig]):
    """Masked words, swapped captions and, in stage two, questions, on LXMERT's annotations."""

    config_class = PretrainConfig
    architecture = "pretraining"
    epoch_weights = True
    training: PretrainingDataset
    validation: PretrainingDataset | None

    def read(self) -> None:
        config = self.config
        self.table = AnswerTable.read(
            self.data_root / "lxmert" / "all_ans.json", config.qa_sets.split(",") if config.qa_sets else None
        )
        self.answers = self.table.answers if config.task_qa else None
        self.training = self._read(config.train)
        self.validation = self._read(config.valid) if config.valid else None

    def _read(self, names: str) -> PretrainingDataset:
        config, images = self.config, self.images()
        files = annotation_files(self.data_root / "lxmert", names)
        source = AnnotationSource(files, self.encoder, self.table)
        split = self.open_split(source, images, allow_missing_images=config.allow_missing_images)
        options = PretrainingOptions(
            task_mask_lm=config.task_mask_lm,
            task_matched=config.task_matched,
            word_mask_rate=config.word_mask_rate,
            max_seq_length=config.max_seq_length,
            image_size_min=config.image_size_min,
            image_size_max=config.image_size_max,
            aspect_ratio_group_factor=config.aspect_ratio_group_factor,
            seed=config.seed,
        )
        return PretrainingDataset(split, images, self.encoder.vocabulary, options)


def main(argv: list[str] | None = None) -> None:
    training.main(Pretraining, RECIPES, argv)


if __name__ == "__main__":
    main()
