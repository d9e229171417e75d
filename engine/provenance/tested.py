"""Which versions of the libraries were tested: docs/versions.md has the combinations."""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from engine.errors import UserError

# By distribution, the lowest, which setup.py asks for, and the newest one, of which other patches count as well.
TESTED = {
    "torch": ("2.10", "2.15.0"),
    "triton": ("3.6", "3.9.0"),
    "deepspeed": ("0.19.8", "0.19.8"),
    "transformers": ("5.3", "5.24.0"),
    "tokenizers": ("0.22.1", "0.23.3"),
    "numpy": ("2.0", "2.5.5"),
}


def check_versions() -> str | None:
    """Refuse installed libraries that are older than those that were tested. pip does so, too, but can be told not to.

    What a build adds to a version, as in 2.10.0a0+git, doesn't count.

    Returns:
        what to say of libraries that are newer, in one line, or None.

    Raises:
        UserError: naming all that are older.
    """
    older, newer = {}, []
    for name, (lowest, newest) in TESTED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        release = Version(Version(found).base_version)
        if release < Version(lowest):
            older[name] = f"{name} {found} is older than {lowest}, the oldest that works"
        elif release.release[:2] > Version(newest).release[:2]:
            newer.append(f"{name} {found} is newer than {newest}, the newest that was tested")
    if older:
        names = " ".join(f'"{name}>={lowest}"' for name, (lowest, _) in TESTED.items() if name in older)
        raise UserError(f"{'; '.join(older.values())}; run `pip install {names}`")
    return "; ".join(newer) or None
