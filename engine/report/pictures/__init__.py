"""Pictures from held-out data: what a run's model answers, how sure it is, and where it looks.

held_out.py     the examples that the run validated on, and a part of them
reader.py       the run's model, and what it makes of examples
answering.py    questions: scores, calibration, answers, mistakes
captions.py     captions: masked words, and images that they belong to
attention.py    which cells are read, and where the attention of a word goes
words.py        the words of sentences, by how rare they are
statistics.py   means with intervals, and calibration
charts.py       these as charts
drawing.py      images with their cells
"""

from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.importing import heavy_imports
from engine.report.sections import Section

if TYPE_CHECKING:
    from engine.report.pictures.reader import PictureOptions


def picture_sections(folder: Path, config: "PictureOptions") -> list[Section]:
    """What a run's model makes of at most `config.questions` examples that it wasn't trained on.

    Args:
        folder: that the training wrote.

    Returns:
        Sections, in their order. Where the model or its data are gone, one that says so.
    """
    with heavy_imports():
        from engine.report.pictures.answering import question_sections
        from engine.report.pictures.attention import attention_section
        from engine.report.pictures.captions import caption_sections
        from engine.report.pictures.reader import open_reader
    try:
        reader, held_out = open_reader(folder, config)
        sections = [*caption_sections(reader, held_out), *question_sections(reader, held_out)]
        return [*sections, attention_section(reader, held_out)]
    except UserError as error:
        return [Section("Held-out data", [f"There are no pictures from held-out data: {error}."])]
