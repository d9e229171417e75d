"""The report: sections from all that is known of the runs, as one HTML file, and its pictures beside it."""

import base64
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.files import replacing
from engine.importing import check_packages
from engine.report.charts import chart_sections
from engine.report.flags import ReportConfig
from engine.report.runs import ReportedRun, read_runs
from engine.report.sections import Part, Picture, Section, Table
from engine.report.tables import differences, head, results, warnings

PAGE, TEMPLATE = "report.html", "page.html.jinja"
NAMED_PICTURE = re.compile(r'<figure data-file="([\w-]+\.png)"')  # as the template writes them


def write_report(config: ReportConfig) -> Path:
    """Read the runs, draw them, and write the page, all of it or nothing.

    Raises:
        UserError: if a run can't be read, a package is missing, or the page can't be written.
    """
    started = time.monotonic()
    check_packages("a report", "matplotlib", "jinja2")
    runs = read_runs(config.runs)
    folder = Path(config.output) if config.output else runs[0].folder / "report"
    _check_folder(folder)
    sections = gather(runs, config)
    title = ", ".join(run.name for run in runs)
    content = render(title, sections).encode(errors="replace")  # a folder's name may be no UTF-8
    pictures = {f"{picture.name}.png": picture.png for picture in pictures_of(sections)}
    write(folder, content, pictures)
    size, seconds = len(content) / 1e6, time.monotonic() - started
    beside = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
    print(f"wrote {folder / PAGE} ({size:.2f} MB) and {beside} beside it in {seconds:.1f} seconds")
    return folder / PAGE


def gather(runs: Sequence[ReportedRun], config: ReportConfig) -> list[Section]:
    """All sections, in their order."""
    sections = [head(runs), results(runs), *chart_sections(runs)]
    if (warned := warnings(runs)) is not None:
        sections.append(warned)
    if len(runs) > 1:
        sections.append(differences(runs))
    if config.pictures:
        from engine.report.pictures import picture_sections  # brings torch

        for run in runs:
            before = f"{run.name}: " if len(runs) > 1 else ""
            sections += [Section(before + told.title, told.parts) for told in picture_sections(run.folder, config)]
    return sections


def render(title: str, sections: Sequence[Section]) -> str:
    """The page as HTML, with everything inside."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = data_uri
    environment.filters["blocks"] = blocks
    template = environment.from_string(files("engine.report").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(title=title, sections=sections, now=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def blocks(parts: Sequence[Part]) -> Iterator[tuple[str, Any]]:
    """What the template tells apart: a text, a table, cards, and pictures that follow each other."""
    for kind, members in groupby(parts, kind_of):
        together = list(members)
        yield from [(kind, together)] if kind == "pictures" else ((kind, member) for member in together)


def kind_of(part: Part) -> str:
    if isinstance(part, Picture):
        return "pictures"
    if isinstance(part, Table):
        return "table"
    return "text" if isinstance(part, str) else "cards"


def pictures_of(sections: Sequence[Section]) -> Iterator[Picture]:
    for section in sections:
        for part in section.parts:
            if isinstance(part, Picture):
                yield part
            elif not isinstance(part, str | Table):
                yield from (card.picture for card in part)


def write(folder: Path, content: bytes, pictures: Mapping[str, bytes]) -> None:
    """Write all files, then put them in their places; on a full disk nothing changes. An older report's pictures go.

    Raises:
        UserError: if they can't be written.
    """
    page = folder / PAGE
    try:
        older = set(NAMED_PICTURE.findall(page.read_text(errors="replace"))) if page.exists() else set()
        with ExitStack() as stack:
            for name, data in {PAGE: content, **pictures}.items():  # the page is put in its place last
                file = stack.enter_context(replacing(folder / name, "wb"))
                file.write(data)
                file.flush()
        for name in older - pictures.keys():
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{page} can't be written ({error.strerror}); free space or choose another --output") from None


def _check_folder(folder: Path) -> None:
    """Make it, before any work is done, and see that it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} can't be made ({error.strerror}); choose another --output") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} can't be written to; choose another --output")
