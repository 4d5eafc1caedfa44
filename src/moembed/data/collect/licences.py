"""Which package a file belongs to, and the licence that this package names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import metadata
from pathlib import Path

UNKNOWN = "unknown"
_CLASSIFIER = "License :: "
# What collectors read; other files of packages are not looked up.
_READ = re.compile(r"/LC_MESSAGES/|/man/|/help/")


class Licences:
    """Packages of Debian and Python below a root, by the files they own.

    Debian's are read from ``var/lib/dpkg/info/*.list`` and the machine-readable copyright files (DEP-5),
    Python's from the metadata of the distributions. A package that names its licence in prose alone has the
    licence ``unknown``: prose is not guessed at.

    Args:
        sites: folders of Python packages.
    """

    def __init__(self, root: Path, sites: tuple[Path, ...] = ()) -> None:
        self._root, self._sites = root, sites
        self._known: dict[tuple[str, str], str] = {}

    def of_file(self, path: Path) -> tuple[str, str]:
        """The package that owns the file, empty where none does, and its licence."""
        for site in self._sites:
            if path.is_relative_to(site):
                return self._of_python.get(path.relative_to(site).parts[0], ("", UNKNOWN))
        package = self._owner.get(f"/{path.relative_to(self._root).as_posix()}", "")
        return package, self.of_package(package) if package else UNKNOWN

    def of_package(self, package: str, files: str = "*") -> str:
        """The licence of those files of a Debian package, as its copyright file names it.

        Args:
            files: a pattern of DEP-5, as ``debian/*``; where it does not stand there, the package's ``*``.
        """
        key = (package, files)
        if key not in self._known:
            self._known[key] = self._read(package, files)
        return self._known[key]

    def _read(self, package: str, files: str) -> str:
        path = self._root / "usr/share/doc" / package / "copyright"
        try:
            text = path.read_text("utf-8", errors="replace")
        except OSError:
            return UNKNOWN
        if not text.lstrip().lower().startswith("format"):
            return UNKNOWN
        found = {}
        for stanza in stanzas(text.splitlines()):
            for pattern in stanza.get("files", "").split():
                found[pattern] = stanza.get("license", "").split("\n")[0].strip()
        return found.get(files) or found.get("*") or UNKNOWN

    @cached_property
    def _owner(self) -> dict[str, str]:
        owner = {}
        for listing in sorted((self._root / "var/lib/dpkg/info").glob("*.list")):
            package = listing.name.removesuffix(".list").split(":")[0]
            for line in listing.read_text("utf-8", errors="replace").splitlines():
                if _READ.search(line):
                    owner[line] = package
        return owner

    @cached_property
    def _of_python(self) -> dict[str, tuple[str, str]]:
        """Top-level folder -> distribution and licence."""
        found: dict[str, tuple[str, str]] = {}
        for distribution in metadata.distributions(path=[str(site) for site in self._sites]):
            about = distribution.metadata
            for folder in {file.parts[0] for file in distribution.files or () if len(file.parts) > 1}:
                found.setdefault(folder, (about["Name"], _python_licence(about)))
        return found


def _python_licence(about: metadata.PackageMetadata) -> str:
    """The expression, or the one line of the field, or the classifiers."""
    stated = [about[key] for key in ("License-Expression", "License") if key in about]
    if short := [value.strip() for value in stated if value.strip() and "\n" not in value.strip()]:
        return short[0]
    classifiers = [one for one in about.get_all("Classifier") or () if one.startswith(_CLASSIFIER)]
    return " AND ".join(one.rpartition(" :: ")[2] for one in classifiers) or UNKNOWN


def stanzas(lines: list[str]) -> Iterator[Mapping[str, str]]:
    """Paragraphs of a Debian control file: fields in small letters, continued lines after a line break.

    The form is that of Debian Policy, chapter 5.1.
    """
    fields: dict[str, str] = {}
    last = ""
    for line in [*lines, ""]:
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t":
            if last:
                fields[last] += "\n" + line[1:]
        elif not line.startswith("#"):
            name, _, value = line.partition(":")
            last = name.strip().lower()
            fields[last] = value.strip()
