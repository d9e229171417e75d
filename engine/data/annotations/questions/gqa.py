"""GQA's annotation files, in LXMERT's form.

    [{"question_id": "00123456", "img_id": "2345678", "sent": "Is the cup left of the book?", "label": {"no": 1}}, ...]

The split for the leaderboard, `submit`, has no `label`. `launch/prepare.py gqa` makes these files of the official ones.
"""

from typing import Any, ClassVar

from engine.data.annotations.formats.lxmert import field
from engine.data.annotations.questions.vqa import VqaFile
from engine.data.images.places import GQA


class GqaFile(VqaFile):
    """VQA's form, but for ids, which are texts, and images, which GQA brings along."""

    format: ClassVar[str] = "gqa"
    folder: ClassVar[str] = "gqa"
    train: ClassVar[tuple[str, ...]] = ("train", "valid")
    usual_answers: ClassVar[int] = 1842
    answered_only: ClassVar[bool] = True
    leaderboard: ClassVar[str] = "submit"
    leaderboard_repeats: ClassVar[bool] = True

    def id_of(self, item: Any) -> str:
        return str(field(item, "question_id", str))  # digits, some of them zeros at the front

    def image_of(self, img_id: str) -> str:
        return f"{GQA}:{img_id}"
