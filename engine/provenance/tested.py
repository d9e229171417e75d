"""Which versions of the libraries were tested."""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

# By distribution, the lowest and the newest one; of the newest, other patches count as tested, too.
TESTED = {
    "torch": ("2.10", "2.13.0"),
    "triton": ("3.6", "3.9.0"),
    "deepspeed": ("0.19.7", "0.19.8"),
    "transformers": ("5.3", "5.23.0"),
    "tokenizers": ("0.22", "0.23.3"),
    "numpy": ("1.26", "2.4.6"),
}


def untested() -> str | None:
    """What to say of installed libraries that are older or newer, in one line, or None.

    What a build adds to a version, as in 2.10.0a0+git, doesn't count.
    """
    told = []
    for name, (lowest, newest) in TESTED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        release = Version(Version(found).base_version)
        if release < Version(lowest):
            told.append(f"{name} {found} is older than {lowest}, the oldest that was tested")
        elif release.release[:2] > Version(newest).release[:2]:
            told.append(f"{name} {found} is newer than {newest}, the newest that was tested")
    return "; ".join(told) or None
