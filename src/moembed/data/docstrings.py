"""The built-in real data: docstring summaries and the code they describe, from the installed Python packages.

An environment with torch holds tens of thousands of (what it does, how it does it) pairs written by people.
The packages are read as text and parsed with ``ast``; nothing is imported or run. Whole packages are set
aside, so that evaluation asks about code the model never saw. The idea, and most of the rule of what makes a
pair, are CodeSearchNet's (Husain et al., 2019, arXiv:1909.09436, section 2).
"""

from __future__ import annotations

import ast
import gc
import hashlib
import os
import pickle
import re
import site
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import cast

from moembed.types import UserError

SUMMARY_WORDS = range(3, 65)
MIN_CODE_LINES = 3
MAX_CODE_CHARACTERS = 4000
UNSEEN_SALT = 24160  # sets aside well-known packages of many kinds: data frames, graphs, images, terminals

_TEST_FOLDERS = {"test", "tests", "testing"}
_VENDOR_FOLDERS = {"externals", "third_party"} | {
    mark + name for mark in ("", "_") for name in ("vendor", "vendored", "extern")
}
_TEST_FILE = re.compile(r"test_.*|.*_test|conftest")
# Where a docstring turns from prose to reference: a section, a field, a table, a directive, a doctest.
_REFERENCE = re.compile(
    r"^\s*(>>>|\.\. |[:@]\w+|[-=~*]{3,}|\w+ ?\(`|\w+ : |"
    r"(args|arguments|parameters|params|inputs?|returns?|outputs|raises|yields|examples?|notes?|usage)\s*:?\s*$)",
    re.MULTILINE | re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_FILES_PER_WORKER = 500

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class CodePair:
    """A docstring summary and the function it came from; ``file`` is relative to site-packages."""

    query: str
    document: str
    package: str
    qualname: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Docstrings:
    """Pairs of two disjoint sets of packages, each sorted by package, file and line; no text occurs twice.

    ``skipped`` counts what was left out: files ("unreadable", "not UTF-8", "syntax error") and pairs
    ("repeated query", "repeated document").
    """

    train: list[CodePair]
    unseen: list[CodePair]
    files: int
    skipped: dict[str, int]

    @property
    def train_packages(self) -> list[str]:
        return sorted({pair.package for pair in self.train})

    @property
    def unseen_packages(self) -> list[str]:
        return sorted({pair.package for pair in self.unseen})


def collect(roots: Sequence[Path] | None = None, unseen_documents: int = 6000) -> Docstrings:
    """Read every package below ``roots`` (default: this interpreter's site-packages) and split by package.

    A query counts once, and so does a document (compared without regard to white space, queries also without
    case): the first pair in order of package, file and line stays. Packages then go to the unseen side in the
    order of a salted hash of their names until it holds ``unseen_documents`` pairs; a package with more than
    a quarter of all pairs always stays in training. The same environment gives the same result.

    Large environments are read by several processes of their own, which never run the caller's script.

    Raises:
        UserError: the packages do not hold that many pairs to set aside.
    """
    if roots is None:
        roots = [Path(folder) for folder in site.getsitepackages()]
    files = sorted(_python_files({root.resolve() for root in roots}))
    skipped: Counter[str] = Counter()
    found: list[CodePair] = []
    for outcome in _read_all(files):
        if isinstance(outcome, str):
            skipped[outcome] += 1
        else:
            found += outcome
    pairs = list(_unrepeated(found, skipped))
    unseen = _unseen_packages(pairs, unseen_documents)
    return Docstrings(
        train=[pair for pair in pairs if pair.package not in unseen],
        unseen=[pair for pair in pairs if pair.package in unseen],
        files=len(files),
        skipped=dict(skipped),
    )


def code_pair(function: Function, lines: Sequence[bytes]) -> tuple[str, str] | None:
    """The rule of what counts as a pair: ``(summary, code without its docstring)``, or None.

    The summary is the first paragraph of the docstring, up to where reference material starts (a section such
    as "Args:", a field, a doctest), on one line: ``SUMMARY_WORDS`` words (two letters or more, any language),
    printable, not the signature. The code is the source text from ``def`` on (decorators may repeat the
    docstring), comments and layout kept, dedented, cut at a line end to ``MAX_CODE_CHARACTERS``, at least
    ``MIN_CODE_LINES`` lines that are not blank. Classes are no pairs: their code contains that of their
    methods, so a method's summary would have two right answers.

    Args:
        function: a parsed function or method.
        lines: the UTF-8 source of its file, split at "\\n" (``ast`` counts columns in bytes).
    """
    docstring = ast.get_docstring(function)
    if not docstring:
        return None
    prose = _REFERENCE.split(docstring, maxsplit=1)[0]
    summary = " ".join(re.split(r"\n\s*\n", prose, maxsplit=1)[0].split())
    if len(_WORD.findall(summary)) not in SUMMARY_WORDS or not summary.isprintable():
        return None
    if summary.startswith(f"{function.name}("):
        return None
    code = "\n".join(_without_docstring(function, lines))
    if len(code) > MAX_CODE_CHARACTERS:
        code = code[: MAX_CODE_CHARACTERS + 1].rpartition("\n")[0]
    if sum(1 for line in code.split("\n") if line.strip()) < MIN_CODE_LINES:
        return None
    return summary, code


def _without_docstring(function: Function, lines: Sequence[bytes]) -> list[str]:
    """Lines of the function, dedented, with the docstring cut out by position."""
    docstring = function.body[0]
    assert docstring.end_lineno is not None
    assert docstring.end_col_offset is not None
    head = [
        *lines[function.lineno - 1 : docstring.lineno - 1],
        lines[docstring.lineno - 1][: docstring.col_offset],
    ]
    rest = lines[docstring.end_lineno - 1][docstring.end_col_offset :].lstrip(b"; \t")
    tail = list(lines[docstring.end_lineno : function.end_lineno])
    if rest and not rest.startswith(b"#"):  # a statement shares the line: def f(): "doc"; return 1
        head[-1] += rest
    elif not head[-1].strip():
        head.pop()
    while tail and not tail[0].strip():
        tail.pop(0)
    indent = lines[function.lineno - 1][: function.col_offset]
    return [line.removeprefix(indent).rstrip().decode() for line in head + tail]


@dataclass(frozen=True, slots=True, order=True)
class _File:
    package: str
    name: str  # relative to the root
    path: Path


def _python_files(roots: Iterable[Path]) -> Iterator[_File]:
    """Files of every top-level folder, without tests and without other packages' code."""
    for root in roots:
        owner = _owners(root)
        for folder in root.iterdir() if root.is_dir() else ():
            if not folder.name.isidentifier() or folder.name == "moembed":
                continue
            for path in folder.rglob("*.py"):
                name = path.relative_to(root)
                if (_TEST_FOLDERS | _VENDOR_FOLDERS).isdisjoint(name.parts) and not _TEST_FILE.fullmatch(
                    path.stem
                ):
                    yield _File(owner.get(folder.name, folder.name), name.as_posix(), path)


def _owners(root: Path) -> dict[str, str]:
    """Top-level folder -> name of the installed distribution: folders shipped together are one package."""
    owner: dict[str, str] = {}
    for distribution in metadata.distributions(path=[str(root)]):
        for folder in {file.parts[0] for file in distribution.files or () if len(file.parts) > 1}:
            name = distribution.metadata["Name"]
            owner[folder] = min(name, owner.get(folder, name))
    return owner


def _read_all(files: Sequence[_File]) -> Iterable[list[CodePair] | str]:
    workers = min(os.cpu_count() or 1, len(files) // _FILES_PER_WORKER)
    if workers < 2:
        return list(map(_read, files))
    # Commands, not processes of multiprocessing: those would run the caller's script again in every worker.
    shares = [files[start::workers] for start in range(workers)]
    with ThreadPoolExecutor(workers) as threads:
        found = list(threads.map(_read_elsewhere, shares))
    return [found[number % workers][number // workers] for number in range(len(files))]


def _read_elsewhere(files: Sequence[_File]) -> list[list[CodePair] | str]:
    """``_read`` of every file, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", "from moembed.data.docstrings import read_from_stdin; read_from_stdin()"]
    done = subprocess.run(command, input=pickle.dumps(files), stdout=subprocess.PIPE, env=environment)
    if done.returncode:  # as when the machine has no memory left for it
        return list(map(_read, files))
    return cast(list[list[CodePair] | str], pickle.loads(done.stdout))


def read_from_stdin() -> None:
    """The work of one process of ``_read_all``: pickled files come in, what they hold goes out."""
    gc.disable()  # syntax trees hold no cycles: without the collector's vain rounds they are parsed faster
    files = pickle.load(sys.stdin.buffer)
    sys.stdout.buffer.write(pickle.dumps([_read(file) for file in files]))


def _read(file: _File) -> list[CodePair] | str:
    """The pairs of one file, or why it was skipped."""
    try:
        source = file.path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError:
        return "unreadable"
    except UnicodeDecodeError:
        return "not UTF-8"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # complaints about other people's string escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "syntax error"
    lines = source.encode().split(b"\n")
    pairs = []
    for qualname, function in _functions(tree, ""):
        pair = code_pair(function, lines)
        if pair:
            pairs.append(CodePair(*pair, file.package, qualname, file.name, function.lineno))
    return pairs


def _functions(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
    """Functions and methods with their qualified names, not those inside other functions."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Function):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.stmt):
            yield from _functions(node, prefix)


def _unrepeated(pairs: Iterable[CodePair], skipped: Counter[str]) -> Iterator[CodePair]:
    queries: set[bytes] = set()
    documents: set[bytes] = set()
    for pair in pairs:
        query, document = _digest(pair.query.casefold()), _digest(pair.document)
        if query in queries:
            skipped["repeated query"] += 1
        elif document in documents:
            skipped["repeated document"] += 1
        else:
            queries.add(query)
            documents.add(document)
            yield pair


def _digest(text: str) -> bytes:
    return hashlib.sha256(" ".join(text.split()).encode()).digest()


def _unseen_packages(pairs: Sequence[CodePair], wanted: int) -> set[str]:
    size = Counter(pair.package for pair in pairs)
    unseen: set[str] = set()
    pairs_unseen = 0
    for package in sorted(size, key=lambda name: _digest(f"{UNSEEN_SALT} {name}")):
        if pairs_unseen < wanted and 4 * size[package] <= len(pairs):
            unseen.add(package)
            pairs_unseen += size[package]
    if pairs_unseen < wanted or len(unseen) == len(size):
        raise UserError(
            f"the installed packages hold {len(pairs)} docstring pairs, too few to set {wanted} aside and "
            "train on the rest; ask for fewer unseen documents or install more packages"
        )
    return unseen
