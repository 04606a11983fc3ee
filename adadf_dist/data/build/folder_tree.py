"""List the files of image folders. Files added by operating systems and archivers are skipped and counted."""

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
"""Lowercase names of folders added by operating systems. Hidden folders (`.Trash-1000`, ...) need no entry."""
SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "folder.jpg.lnk"))
"""Lowercase names of files added by operating systems. Hidden files (`.DS_Store`, `._NAME`, ...) need no entry."""

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


@dataclass
class Skipped:
    """Paths skipped while listing folders; a path that is skipped repeatedly counts once."""

    kinds: dict[str, str] = field(default_factory=dict)
    """Skipped path -> kind of file or folder, for messages."""

    def add(self, path: str, kind: str) -> None:
        self.kinds[path] = kind

    def counts(self) -> dict[str, int]:
        """Return the number of skipped paths of each kind."""
        return dict(sorted(Counter(self.kinds.values()).items()))

    def describe(self) -> str:
        """Return a one-line summary, or an empty string if nothing was skipped."""
        if not self.kinds:
            return ""
        return "skipped " + ", ".join(f"{count:,} {kind}" for kind, count in self.counts().items())


def is_system_name(name: str) -> bool:
    """Return whether a file or folder is hidden or was added by an operating system, a NAS or an archiver."""
    return name.startswith(".") or is_known_name(name)


def is_known_name(name: str) -> bool:
    """Return whether a name is a known system name, such as `@eaDir` (NAS device) or FOUND.000 (Windows disk check)."""
    plain = name.lower()
    return (
        plain in SYSTEM_FOLDERS
        or plain in SYSTEM_FILES
        or plain.startswith("@")
        or re.fullmatch(r"found\.[0-9]{3}", plain) is not None
    )


def system_kind(name: str) -> str:
    """Return the category of a system file or folder with this name, as shown in messages."""
    if name.startswith("._"):
        return "._* files"
    return name.strip() if is_known_name(name) or name in (".DS_Store", ".ipynb_checkpoints") else "hidden"


def walk_files(
    folder: Path | str, skipped: Skipped, on_unreadable: Callable[[str, UserError], None] | None = None
) -> Iterator[str]:
    """Yield the paths of all files in a folder, sorted, followed by those of each of its subfolders in turn.

    Links to folders are skipped, because they may form a cycle. An unreadable folder is passed to
    `on_unreadable` with its error; without one, the `UserError` is raised.
    """
    try:
        entries = list_entries(folder)
    except UserError as error:
        if on_unreadable is None:
            raise
        on_unreadable(str(folder), error)
        return
    folders = []
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
    """Return the sorted names of files, without system files. Raises `UserError` if the folder is unreadable."""
    found = []
    for entry in list_entries(folder):
        kind = kind_of(entry)
        if kind == "file":
            found.append(entry.name)
        elif kind != "folder":
            skipped.add(entry.path, kind)
    return found


def subfolders(folder: Path, skipped: Skipped | None = None) -> list[str]:
    """Return the sorted names of subfolders, without system folders. Raises `UserError` if the folder is unreadable."""
    found = []
    for entry in list_entries(folder):
        if not is_folder(entry):
            continue
        if is_system_name(entry.name):
            kind = system_kind(entry.name)
        elif entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve()):
            kind = "links to folders"  # link from this folder to itself or a parent
        else:
            found.append(entry.name)
            continue
        if skipped is not None:
            skipped.add(entry.path, kind)
    return found


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to a folder. A link to itself does not count."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def check_root(root: Path, fix: str) -> None:
    """Raise `UserError` unless `root` is a folder; `fix` is the hint for a missing folder."""
    if root.is_dir():
        return
    if root.exists():
        kind = "an archive; unpack it first" if is_archive(root.name) else "a file"
        raise UserError(f"{escape_name(str(root))}: --root must be a folder, not {kind}")
    raise UserError(f"{escape_name(str(root))}: no such folder; {fix}")


def is_archive(name: str) -> bool:
    """Return whether a file name has an archive extension."""
    return name.lower().endswith(ARCHIVES)


def list_entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return all entries of a folder, sorted by name. Raises `UserError` if the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name))  # locale-independent order
    except OSError as error:
        raise UserError(
            f"{escape_name(str(folder))}: folder cannot be read ({error.strerror}); "
            "fix its permissions or move it elsewhere"
        ) from None


def kind_of(entry: os.DirEntry[str]) -> str:
    """Return `file`, `folder`, or a reason to skip the entry. Dangling links count as files; reading them fails."""
    if is_system_name(entry.name):
        return system_kind(entry.name)
    try:
        if entry.is_dir():
            return "links to folders" if entry.is_symlink() else "folder"
        return "file" if entry.is_file() or entry.is_symlink() else "special files"
    except OSError:  # a circular link
        return "file"


def readable_name(folder: Path, name: str) -> str:
    """Return a folder's name for use as a class name. Raises `UserError` if it is not valid UTF-8."""
    text = os.fsencode(name).decode("utf-8", "replace")
    if escape_name(name) != text:
        raise UserError(
            f"{escape_name(str(folder / name))}: the folder name is used as a class name, but is not valid UTF-8; "
            "rename it (convmv converts names in bulk)"
        )
    return text
