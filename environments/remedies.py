"""The remedy for an import or a file that is missing: where it can come from, in each kind of environment."""

from __future__ import annotations

import re
import sys
from itertools import islice
from pathlib import Path

from attrs import evolve

from config.modules import ModuleSpec
from config.packages import PROJECT, UV_LOCK
from protocol.errors import Failure
from protocol.model import Kind

_DISTRIBUTIONS = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "fitz": "PyMuPDF",
    "git": "GitPython",
    "google": "the package of the service, such as google-cloud-storage",
    "jose": "python-jose",
    "jwt": "PyJWT",
    "Levenshtein": "Levenshtein",
    "magic": "python-magic",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyOpenSSL",
    "PIL": "Pillow",
    "pkg_resources": "setuptools<81",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "socks": "PySocks",
    "usb": "pyusb",
    "win32com": "pywin32",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}
"""Names of distributions that differ from the names that are imported."""
_CONDA = {"cv2": "opencv", "psycopg2": "psycopg2", "fitz": "pymupdf", "pkg_resources": "setuptools<81"}
"""Names of conda packages, where they are not those of `_DISTRIBUTIONS` in small letters."""
_SINCE = {
    "zoneinfo": ("3.9", "backports.zoneinfo"),
    "graphlib": ("3.9", "graphlib-backport"),
    "tomllib": ("3.11", "tomli"),
    "annotationlib": ("3.14", ""),
    "compression": ("3.14", ""),
    "asyncio.taskgroups": ("3.11", "taskgroup"),
    "asyncio.timeouts": ("3.11", "async-timeout"),
    "importlib.resources.abc": ("3.11", "importlib-resources"),
    "concurrent.interpreters": ("3.14", ""),
    "pathlib.types": ("3.14", ""),
    "string.templatelib": ("3.14", ""),
}
"""Names that came to the standard library: the version of Python, and a distribution for older ones."""
_UNTIL = {
    **dict.fromkeys(("asynchat", "asyncore", "distutils", "imp", "smtpd"), "3.11"),
    **dict.fromkeys(("aifc", "audioop", "cgi", "cgitb", "chunk", "crypt", "imghdr", "lib2to3", "mailcap"), "3.12"),
    **dict.fromkeys(("msilib", "nis", "nntplib", "ossaudiodev", "pipes", "sndhdr", "spwd", "sunau"), "3.12"),
    **dict.fromkeys(("telnetlib", "uu", "xdrlib"), "3.12"),
}
"""Names that left the standard library: the last version of Python that has them."""
_MISSING = re.compile(r"No module named '([^']+)'(.*)", re.DOTALL)
_NO_FILE = re.compile(r"\[Errno 2\] No such file or directory: '([^'\\]+)'")
_LOOKED_AT = 2000
"""Files of a module among which a name is searched."""


def distribution_of(name: str) -> str:
    """Return the distribution that brings an import, as far as it is known; most have the name of their import."""
    found = _DISTRIBUTIONS.get(name, name)
    return name if " " in found else found


def with_remedy(failure: Failure, spec: ModuleSpec, root: Path, *, package: bool) -> Failure:
    """Return a failure with its remedy in the message, if it is a missing import, or a file of the module's own.

    `root` has the module's files; `package`: its handler is in an `__init__.py`.
    """
    if failure.type == "FileNotFoundError" and (absent := _NO_FILE.fullmatch(failure.message)) is not None:
        hint = _data(absent[1], spec, root)
        return evolve(failure, message=f"{failure.message}\n{hint}") if hint else failure
    found = _MISSING.fullmatch(failure.message) if failure.type == "ModuleNotFoundError" else None
    if found is None:
        return failure
    name, rest = found[1], found[2]
    remedy = _own(name, root, package=package, hides="is not a package" in rest) or _beside(name, spec)
    remedy = remedy or _standard(name, spec) or _installed(name, spec)
    return evolve(failure, message=f"{failure.message}\n{remedy}")


def _own(name: str, root: Path, *, package: bool, hides: bool) -> str:
    """Return the remedy for a name of the module's own files."""
    top, _, below = name.partition(".")
    for file in (root / f"{top}.py", root / top):
        if not file.exists():
            continue
        if hides:
            return f"`{file.name}` of the module hides the library `{top}`: rename the file."
        if below:
            return f"`{file.name}` of the module has no `{below}`."
        if package:
            return f"`{file.name}` is a file of this package: write `from . import {top}`."
    if below:
        return ""
    for file in islice(root.rglob("*"), _LOOKED_AT):
        inside = file.relative_to(root)
        if file.name in (f"{top}.py", top) and len(inside.parts) > 1 and (file.suffix == ".py" or file.is_dir()):
            return f"The module has it as `{inside}`: write `from {'.'.join(inside.parts[:-1])} import {top}`."
    return ""


def _data(name: str, spec: ModuleSpec, root: Path) -> str:
    """Return the remedy for a file that was looked for in the working directory, and is with the code."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        return ""
    write = f"`Path(__file__).parent / {name!r}`"
    try:
        if (root / path).exists():
            return f"The module has it; the working directory is another folder: write {write}."
        if spec.path is not None and spec.path.suffix == ".py" and spec.path.with_name(path.parts[0]).exists():
            beside = f"`{path.parts[0]}` is beside `{spec.path.name}`, but not in the module"
            return f"{beside}: give the folder as `path`, and write {write}."
    except (OSError, ValueError):
        pass  # the name is too long
    return ""


def _beside(name: str, spec: ModuleSpec) -> str:
    """Return the remedy for a file beside the only file of the module."""
    if spec.path is None or spec.path.suffix != ".py":
        return ""
    top = name.partition(".")[0]
    for file in (spec.path.with_name(f"{top}.py"), spec.path.with_name(top) / "__init__.py"):
        if file != spec.path and file.is_file():
            shown = file.name if file.name != "__init__.py" else f"{top}/"
            return f"`{shown}` is beside `{spec.path.name}`, but not in the module: give the folder as `path`."
    return ""


def _standard(name: str, spec: ModuleSpec) -> str:
    """Return the remedy for a name of the standard library of another Python."""
    known = next((key for key in _SINCE if name == key or name.startswith(f"{key}.")), None)
    top = name.partition(".")[0]
    if known is not None:
        version, instead = _SINCE[known]
        remedy = f"The standard library has `{known}` since Python {version}: {_python(version, spec, 'or later')}"
        return remedy + (f", or use {instead} from {_where(instead, spec)}." if instead else ".")
    if top in _UNTIL:
        version = _UNTIL[top]
        return f"The standard library has no `{top}` after Python {version}: {_python(version, spec, 'or earlier')}."
    if top in sys.stdlib_module_names:
        return f"`{name}` is of the standard library, but not of this Python: it is another version, or built without."
    return ""


def _python(version: str, spec: ModuleSpec, bound: str) -> str:
    if spec.image is not None:
        return f"choose an image with that version {bound}"
    env = "use `env: venv` with" if spec.env is Kind.INLINE else "set"
    return f'{env} `python: "{version}"` {bound}'


def _where(distribution: str, spec: ModuleSpec) -> str:
    return f"`env: venv` with `requirements: [{distribution}]`" if spec.env is Kind.INLINE else "`requirements`"


def _installed(name: str, spec: ModuleSpec) -> str:
    """Return the remedy for a name of a library."""
    top, _, below = name.partition(".")
    if below:
        return f"`{top}` is there, but has no `{below}`: another version or another package has it."
    wanted = _DISTRIBUTIONS.get(top, top)
    known = "" if top in _DISTRIBUTIONS else ", or the package that has it if its name differs"
    if spec.env is Kind.INLINE:
        return f"`inline` has the standard library only: use `env: venv` with `requirements: [{wanted}]`{known}."
    if spec.env is Kind.CONDA:
        wanted = _CONDA.get(top, wanted.lower() if top in _DISTRIBUTIONS else top)
    if any(_plain(line) == _plain(wanted) for line in (*spec.requirements, *spec.dependencies)):
        return f"{wanted} is installed, but has no `{top}`: check its version, and the name that it is imported by."
    place = "`dependencies`" if spec.env is Kind.CONDA else _listed_in(spec)
    image = ", or install it in the image" if spec.image is not None else ""
    return f"Add {wanted} to {place} of the module{known}{image}."


def _listed_in(spec: ModuleSpec) -> str:
    """Return where the packages of the index are listed: in a field, in the block of a file, or in a project."""
    if UV_LOCK in spec.packages_from:
        return f"`dependencies` of {PROJECT}, and run `uv lock`: they are the packages"
    script = next((name for name in spec.packages_from if name.endswith(".py")), None)
    return "`requirements`" if script is None else f"`dependencies` in the block of {script}: they are the packages"


def _plain(requirement: str) -> str:
    """Return the name of a requirement, as names are compared."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement.rpartition("::")[2].strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""
