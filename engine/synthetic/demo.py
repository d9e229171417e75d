"""A small world to try the engine on: seeded scenes of two shapes, with captions and questions about them.

Everything lies where the real data would: LXMERT's, VQA's, GQA's and SNLI-VE's files, the folders of their images, an
answer table, and a BERT folder with a WordPiece vocabulary of the captions and the shape of a small encoder.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.data.images.folder import SIZES_FILE
from engine.data.images.places import image_path
from engine.progress import Bar
from engine.synthetic.compositional import write_gqa
from engine.synthetic.hypotheses import write_snli_ve
from engine.synthetic.scenes import COLORS, SHAPES, imagine_scenes

ANSWERS = [*COLORS, *SHAPES, "left", "right", "top", "bottom", "yes", "no"]
VISUAL_WORDS = frozenset([*COLORS, *SHAPES])
FIRST_QUESTION = {"mscoco_train": 0, "mscoco_minival": 10**9}  # ids differ between splits, as the real ones do

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# The shape of the demo's BERT, in the words of transformers' BertConfig.
BERT_CONFIG = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 32,
    "initializer_range": 0.08,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def write_demo(
    data_root: Path,
    *,
    train_scenes: int,
    valid_scenes: int,
    seed: int,
    sentences_per_scene: int = 4,
    progress: bool = False,
) -> None:
    """Write the whole data set below `data_root`: the same seed gives the same files.

    Args:
        sentences_per_scene: 4 or 8; half of them are captions, and half are questions.
    """
    scenes = imagine_scenes("train2014", train_scenes, seed), imagine_scenes("val2014", valid_scenes, seed)
    sizes: dict[str, tuple[int, int]] = {}
    texts: list[str] = []
    for name, split in zip(("mscoco_train", "mscoco_minival"), scenes, strict=True):
        annotations: list[dict[str, Any]] = []
        for scene, draw in Bar(split, desc=f"drawing {name}", unit="scene", disable=not progress):
            path = data_root / image_path(scene.img_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            scene.paint(draw).save(path, quality=92)
            sizes[f"data/{image_path(scene.img_id).as_posix()}"] = (scene.height, scene.width)
            annotations.append(scene.annotation(draw, sentences_per_scene))
            texts += [text for sentences in annotations[-1]["sentf"].values() for text in sentences]
        _write_json(data_root / "lxmert" / f"{name}.json", annotations)
        questions = _vqa_questions(annotations, FIRST_QUESTION[name])
        _write_json(data_root / "vqa" / f"{name.removeprefix('mscoco_')}.json", questions)
    _write_json(data_root / "lxmert" / "all_ans.json", [{"ans": answer, "dsets": ["vqa"]} for answer in ANSWERS])
    _write_json(data_root / "vqa" / "trainval_label2ans.json", ANSWERS)
    _write_json(data_root / "vqa" / "trainval_ans2label.json", {answer: row for row, answer in enumerate(ANSWERS)})
    _write_json(data_root / SIZES_FILE, sizes)
    write_bert(data_root / "bert", texts)
    training, held_out = ([scene for scene, _ in split] for split in scenes)
    write_gqa(data_root, training, held_out, seed=seed, number=sentences_per_scene // 2)
    write_snli_ve(data_root, training, held_out, seed=seed)


def _vqa_questions(annotations: Iterable[dict[str, Any]], first: int) -> list[dict[str, Any]]:
    """The questions of LXMERT's annotations as VQA has them; real pre-training has seen VQA's questions, too."""
    questions = []
    for number, item in enumerate(annotations):
        for index, (text, label) in enumerate(zip(item["sentf"]["vqa"], item["labelf"]["vqa"], strict=True)):
            questions.append(
                {
                    "question_id": first + 1000 * number + index,
                    "img_id": item["img_id"],
                    "sent": text,
                    "label": label,
                    "answer_type": "yes/no" if label.keys() & {"yes", "no"} else "other",
                    "question_type": " ".join(text.split()[:2]),
                }
            )
    return questions


def write_bert(folder: Path, texts: Iterable[str]) -> None:
    """A vocabulary of the texts' words and, for all others, of their characters; and a small encoder's configuration.

    It isn't trained: `tokenizers` would give it another order in each process, and models other random weights.
    """
    words = {word for text in texts for word in text.split()}
    characters = sorted({character for word in words for character in word})
    pieces = [*characters, *(f"##{character}" for character in characters), *sorted(words.difference(characters))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *pieces]) + "\n")
    _write_json(folder / "config.json", {**BERT_CONFIG, "vocab_size": len(SPECIAL_TOKENS) + len(pieces)})


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
