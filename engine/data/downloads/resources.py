"""The original's data: every file, where it is published, how large it is, and its checksum."""

from dataclasses import dataclass

from engine.commands import command
from engine.errors import UserError


@dataclass(frozen=True)
class Resource:
    """A file of the original's data."""

    name: str
    url: str
    target: str  # path below data_root
    size: int | None = None  # bytes, only where published exactly
    about: str = "size not published"  # said in place of an unknown size
    sha256: str | None = None
    folder: str | None = None  # of a zip: where its images go, below data_root, whatever folders they have inside
    mirrors: tuple[str, ...] = ()
    by_hand: bool = False  # not to be had by a plain GET; nobody needs it


def _coco(name: str, size: int, sha256: str) -> Resource:
    url = f"http://images.cocodataset.org/zips/{name}.zip"
    return Resource(name, url, f"mscoco/{name}.zip", size, sha256=sha256, folder=f"mscoco/{name}")


def _genome(name: str, size: int, sha256: str) -> Resource:
    url = f"https://cs.stanford.edu/people/rak248/VG_100K_2/{name}.zip"
    folder = "vg_raw_images/VG_100K"  # both zips' images in one
    return Resource(f"vg_{name}", url, f"vg_raw_images/{name}.zip", size, sha256=sha256, folder=folder)


def _unc(name: str, path: str, about: str = "size not published") -> Resource:
    # The original names the host without a scheme, LXMERT names nlp1, whose certificate needs wget's --no-check.
    mirrors = tuple(f"http://{host}.cs.unc.edu/data/lxmert_data/{path}" for host in ("nlp", "nlp1"))
    return Resource(name, f"https://nlp.cs.unc.edu/data/lxmert_data/{path}", path, about=about, mirrors=mirrors)


def _lxmert(name: str, path: str, about: str) -> Resource:
    return Resource(name, f"https://raw.githubusercontent.com/airsplay/lxmert/master/data/{path}", path, about=about)


# Sizes and checksums: COCO from tensorflow/datasets, url_checksums/coco.txt; Visual Genome from huggingface/datasets,
# datasets/visual_genome/dataset_infos.json; 700 MB from LXMERT's read-me; characters counted in copies of its files.
_FOUR = "one of four, about 700 MB in total"
RESOURCES = (
    _coco("train2014", 13_510_573_713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"),
    _coco("val2014", 6_645_013_297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"),
    _coco("test2015", 13_270_587_935, "1a2aa896b81140a850a78fa8bff07d455698d2abf364ff05721763458a8101ca"),
    _genome("images", 9_731_705_982, "51c682d2721f880150720bb416e0346a4c787e4c55d7f80dfd1bd3f73ba81646"),
    _genome("images2", 5_471_658_058, "99da1a0ddf87011319ff3b05cf9176ffee2731cc3c52951162d9ef0d68e3cfb5"),
    _unc("mscoco_train", "lxmert/mscoco_train.json", _FOUR),
    _unc("mscoco_nominival", "lxmert/mscoco_nominival.json", _FOUR),
    _unc("mscoco_minival", "lxmert/mscoco_minival.json", _FOUR),
    _unc("vgnococo", "lxmert/vgnococo.json", _FOUR),
    _lxmert("all_ans", "lxmert/all_ans.json", "about 1 MB: 986,576 characters"),
    _unc("vqa_train", "vqa/train.json"),
    _unc("vqa_nominival", "vqa/nominival.json"),
    _unc("vqa_minival", "vqa/minival.json"),
    _unc("vqa_test", "vqa/test.json"),
    _lxmert("vqa_ans2label", "vqa/trainval_ans2label.json", "about 64 kB: 64,332 characters"),
    _lxmert("vqa_label2ans", "vqa/trainval_label2ans.json", "about 47 kB: 46,668 characters"),
    Resource(
        "width_heigths",
        "https://drive.google.com/file/d/1i7NbLQ-j3edv3zjFwX7paudkYPPtUdy4/view",
        "mscoco/width_heigths.json",
        about=f"optional; `{command('prepare')} sizes` makes it",
        by_hand=True,
    ),
)

# Published numbers of images. A folder with so many needs no zip: who has the original's data has unpacked it.
IMAGES = {
    "mscoco/train2014": 82_783,
    "mscoco/val2014": 40_504,
    "mscoco/test2015": 81_434,
    "vg_raw_images/VG_100K": 108_249,
}


def choose(names: str) -> list[Resource]:
    """The resources of a list "NAME,NAME", or all if it is empty.

    Raises:
        UserError: for a name that there isn't.
    """
    known = {resource.name: resource for resource in RESOURCES}
    wanted = dict.fromkeys(name.strip() for name in names.split(",") if name.strip())
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"--only: there is no {', '.join(unknown)}; the names are {', '.join(known)}")
    return [known[name] for name in wanted] or list(RESOURCES)
