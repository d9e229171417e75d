"""The tasks with questions by name, which is that of their folder below the data root."""

from engine.data.annotations.questions.file import QuestionFile
from engine.data.annotations.questions.gqa import GqaFile
from engine.data.annotations.questions.snli_ve import EntailmentFile
from engine.data.annotations.questions.vqa import VqaFile

QUESTION_FILES: dict[str, type[QuestionFile]] = {file.folder: file for file in (VqaFile, GqaFile, EntailmentFile)}
