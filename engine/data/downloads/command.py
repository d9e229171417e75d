"""prepare.py download."""

from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

from engine.data.downloads.download import download
from engine.data.downloads.plan import plan, print_plan
from engine.data.downloads.resources import choose
from engine.data.preparation import PrepareConfig, Summary


@dataclass
class PrepareDownload(PrepareConfig):
    """Fetch the original's data, verify and unpack them; whatever interrupted it, the same command goes on."""

    dry_run: bool = HfArg(default=False, help="only list addresses, sizes and what is there already")
    only: str = HfArg(default="", help="these of the listed names, with commas between them")
    unpack: bool = HfArg(default=True, help="unpack the images")
    remove_zip: bool = HfArg(default=False, help="remove an archive once it is unpacked")


def prepare_download(config: PrepareDownload) -> Summary:
    """The original's data, or what would be fetched of them."""
    data_root = Path(config.data_root)
    chosen = choose(config.only)
    if not config.dry_run:
        return download(chosen, data_root, unpack=config.unpack, remove_zip=config.remove_zip)
    rows = plan(data_root, chosen)
    print_plan(rows, data_root, unpack=config.unpack)
    return {
        "files": {
            row.resource.name: {
                "url": row.resource.url,
                "bytes": row.resource.size,
                "sha256": row.resource.sha256,
                "target": row.resource.target,
                "state": row.state,
            }
            for row in rows
        }
    }
