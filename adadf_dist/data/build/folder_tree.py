"""Walk folders of images as people have them: what operating systems and archivers add is skipped and counted."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from adadf_dist.errors import UserError
from adadf_dist.files.text import escape_name

SYSTEM_FOLDERS = frozenset(
    (
        "@eadir",  # Synology: thumbnails
        "@recycle",  # QNAP
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "__macosx",  # resource forks in zip files
        "__pycache__",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "network trash folder",
        "temporary items",
        "recycled",
        "lost.dir",
        "_vti_cnf",  # thumbnails of FrontPage
    )
)
"""In small letters. Hidden folders (`.ipynb_checkpoints`, `.Trash-1000`, ...) need no entry."""
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "folder.jpg.lnk"))
"""In small letters. Hidden files (`.DS_Store`, `._NAME`, ...) need no entry."""

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


@dataclass
class Skipped:
    """What a walk left out, each path once however often it is walked over."""

    kinds: dict[str, str] = field(default_factory=dict)
    """Path -> what it is, for messages."""

    def add(self, path: str, kind: str) -> None:
        self.kinds[path] = kind

    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return dict(sorted(Counter(self.kinds.values()).items()))

    def describe(self) -> str:
        """One line; empty when nothing was left out."""
        if not self.kinds:
            return ""
        return "skipped " + ", ".join(f"{count:,} {kind}" for kind, count in self.counts().items())


def is_system_name(name: str) -> bool:
    """Whether a file or folder is hidden, or one that an operating system, a NAS or an archiver adds."""
    return name.startswith(".") or is_known_name(name)


def is_known_name(name: str) -> bool:
    """Whether a name is listed, or of a family: `@...` of NAS boxes, and FOUND.000 of Windows' disk check."""
    plain = name.lower()
    return (
        plain in SYSTEM_FOLDERS
        or plain in SYSTEM_FILES
        or plain.startswith("@")
        or re.fullmatch(r"found\.[0-9]{3}", plain) is not None
    )


def system_kind(name: str) -> str:
    """What a system name is called in messages."""
    if name.startswith("._"):
        return "._* files"
    return name.strip() if is_known_name(name) or name in (".DS_Store", ".ipynb_checkpoints") else "hidden"


def walk_files(
    folder: Path | str, skipped: Skipped, on_unreadable: Callable[[str, UserError], None] | None = None
) -> Iterator[str]:
    """Paths of all files in a folder and its subfolders, files first, sorted within each folder.

    Links to folders are counted, not followed: they may form a cycle. A folder that cannot be read is passed to
    `on_unreadable` with its error; without one, the `UserError` is raised.
    """
    folders = []
    try:
        entries = list_entries(folder)
    except UserError as error:
        if on_unreadable is None:
            raise
        on_unreadable(str(folder), error)
        return
    for entry in entries:
        kind = kind_of(entry)
        if kind == "folder":
            folders.append(entry.path)
        elif kind == "file":
            yield entry.path
        else:
            skipped.add(entry.path, kind)
    for path in folders:
        yield from walk_files(path, skipped, on_unreadable)


def file_names(folder: Path, skipped: Skipped) -> list[str]:
    """Names of the files in a folder, sorted, without those of the system. Raises `UserError`."""
    found = []
    for entry in list_entries(folder):
        kind = kind_of(entry)
        if kind == "file":
            found.append(entry.name)
        elif kind != "folder":
            skipped.add(entry.path, kind)
    return found


def subfolders(folder: Path, skipped: Skipped | None = None) -> list[str]:
    """Names of the folders in a folder, sorted, without those of the system. Raises `UserError`."""
    found = []
    for entry in list_entries(folder):
        if not is_folder(entry):
            continue
        if is_system_name(entry.name):
            kind = system_kind(entry.name)
        elif entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve()):
            kind = "links to folders"  # of this folder to itself, or to one above it
        else:
            found.append(entry.name)
            continue
        if skipped is not None:
            skipped.add(entry.path, kind)
    return found


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def check_root(root: Path, fix: str) -> None:
    """Raise `UserError` unless the root of a tree is a folder. `fix`: what to do about one that is missing."""
    if root.is_dir():
        return
    if root.exists():
        kind = "an archive; unpack it, and give the folder" if is_archive(root.name) else "a file; give a folder"
        raise UserError(f"{escape_name(str(root))}: is {kind} as --root")
    raise UserError(f"{escape_name(str(root))}: no such folder; {fix}")


def is_archive(name: str) -> bool:
    """Whether a file is an archive, by its name."""
    return name.lower().endswith(ARCHIVES)


def list_entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Everything in a folder, sorted by name. Raises `UserError` where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))  # the same order in every locale
    except OSError as error:
        raise UserError(
            f"{escape_name(str(folder))}: the folder cannot be read ({error.strerror}); change that or move it away"
        ) from None


def kind_of(entry: os.DirEntry[str]) -> str:
    """`file`, `folder`, or why it is skipped, for messages. A link to a missing file is a file: reading it fails."""
    if is_system_name(entry.name):
        return system_kind(entry.name)
    try:
        if entry.is_dir():
            return "links to folders" if entry.is_symlink() else "folder"
        return "file" if entry.is_file() or entry.is_symlink() else "special files"
    except OSError:  # a link that leads round in a circle
        return "file"


def readable_name(folder: Path, name: str) -> str:
    """A folder's name as text for a class. Raises `UserError` where its bytes are not UTF-8."""
    text = os.fsencode(name).decode("utf-8", "replace")
    if escape_name(name) != text:
        raise UserError(
            f"{escape_name(str(folder / name))}: the folder's name is to be a class name, but is not plain UTF-8 text; "
            "rename it (convmv converts many names at once)"
        )
    return text
