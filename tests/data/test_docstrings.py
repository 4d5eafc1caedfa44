from __future__ import annotations

import ast
import subprocess
import sys
import textwrap

import pytest

from moembed.data import docstrings
from moembed.data.docstrings import code_pair, collect
from moembed.types import UserError


def pair(source, name="f"):
    """What the rule makes of the function ``name`` in ``source``."""
    source = textwrap.dedent(source)
    functions = {
        node.name: node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return code_pair(functions[name], source.encode().split(b"\n"))


def test_a_pair_is_the_summary_and_the_code_without_the_docstring():
    assert pair('''
        @decorated("Add two numbers quickly")
        def f(a, b):
            """Add two numbers
            quickly.

            More words that are not part of the summary.
            """

            # A comment stays.
            total = a + b

            return  total
    ''') == (
        "Add two numbers quickly.",
        "def f(a, b):\n    # A comment stays.\n    total = a + b\n\n    return  total",
    )


def test_a_method_is_dedented_and_text_at_the_margin_stays_there():
    summary, code = pair('''
        class A:
            async def f(self):
                "Give a text that starts at the margin."
                return """
        margin
                """
    ''')
    assert summary == "Give a text that starts at the margin."
    assert code == 'async def f(self):\n    return """\nmargin\n    """'


@pytest.mark.parametrize(
    ("docstring_lines", "expected"),
    [
        ('    "Says what it does."; x = 1', "    x = 1"),
        ('    "Says what it does."  # noqa', None),
        ('    ("Says what "\n     "it does.")', None),
        ('    "Says what " \\\n    "it does."', None),
        ("    r'''Says what it does.'''", None),
    ],
)
def test_every_way_to_write_a_docstring_is_cut_out(docstring_lines, expected):
    lines = ["def f():", *docstring_lines.split("\n"), "    y = 2", "    return y"]
    kept = ["def f():", *([expected] if expected else []), "    y = 2", "    return y"]
    source = "\n".join(lines)
    assert pair(source) == ("Says what it does.", "\n".join(kept))


def test_columns_after_wide_characters_are_found():
    assert pair('def f(x="é日"): "Trägt 日本 ein wort."; y = [\n    x,\n]\n') == (
        "Trägt 日本 ein wort.",
        'def f(x="é日"): y = [\n    x,\n]',
    )


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        ("Reads the file.\n\nArgs:\n    path: where it is", "Reads the file."),
        ("Reads the file.\n    Args:\n        path: where it is", "Reads the file."),
        ("Reads the file.\n    :param path: where it is", "Reads the file."),
        ("Reads the file.\n    >>> f()", "Reads the file."),
        ("Reads the file.\n    path : str", "Reads the file."),
        ("Читает файл с диска", "Читает файл с диска"),
        ("Reads files", None),
        ("", None),
        ("f(path, mode) -> the file", None),
        ("1 2 3 4 5 6", None),
        ("Reads a\\x00 broken file.", None),
        ("Reads a \\ud800 broken file.", None),
        ("Parameters\n    ----------\n    path to some file", None),
        ("word " * 65, None),
    ],
)
def test_the_summary_is_prose_of_a_few_words(docstring, summary):
    found = pair(f'def f(path):\n    """{docstring}"""\n    y = path\n    return y\n')
    assert (found and found[0]) == summary


def test_a_function_of_two_lines_is_no_pair():
    assert pair('def f():\n    """Says what it does."""\n\n    return 1\n') is None
    assert pair("def f():\n    x = 1\n    y = 2\n    return x\n") is None


def test_long_code_is_cut_at_a_line_end():
    body = "".join(f"    x{i} = {i}\n" for i in range(1000))
    _, code = pair(f'def f():\n    """Says what it does."""\n{body}')
    assert 3980 < len(code) <= docstrings.MAX_CODE_CHARACTERS
    assert f"def f():\n{body}".startswith(code + "\n")


def test_code_cut_to_too_few_lines_is_no_pair():
    table = ", ".join(map(str, range(2000)))
    assert (
        pair(f'def f():\n    """Says what it does."""\n    x = 1\n    y = [{table}]\n    return y\n') is None
    )


def function(name, summary, body="x"):
    return f'def {name}():\n    """{summary}"""\n    {body} = "{name}"\n    return {body}\n\n'


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def package(name, count):
    return {
        f"{name}/a.py": "".join(function(f"{name}{i}", f"Makes thing {name} {i} new.") for i in range(count))
    }


@pytest.fixture
def site(tmp_path):
    """Five packages of ten pairs and one of thirty."""
    for name in ("ant", "bee", "cat", "dog", "eel"):
        write(tmp_path, package(name, 10))
    write(tmp_path, package("whale", 30))
    return tmp_path


def by_package(pairs):
    counts: dict[str, int] = {}
    for item in pairs:
        counts[item.package] = counts.get(item.package, 0) + 1
    return counts


def test_packages_are_split_whole_and_the_same_way_each_time(site):
    found = collect([site], unseen_documents=15)
    assert len(found.unseen) == 20
    assert len(found.train) == 60
    assert set(found.train_packages).isdisjoint(found.unseen_packages)
    assert "whale" in found.train_packages  # more than a quarter of all pairs
    assert found == collect([site], unseen_documents=15)
    assert set(found.unseen_packages) < set(collect([site], unseen_documents=30).unseen_packages)
    assert found.files == 6
    assert found.skipped == {}


def test_a_pair_says_where_it_is_from(site):
    write(
        site,
        {
            "ant/sub/b.py": "class A:\n    if True:\n"
            + textwrap.indent(function("go", "Goes far away now."), " " * 8)
        },
    )
    found = collect([site], 10)
    (item,) = [item for item in found.train + found.unseen if item.query == "Goes far away now."]
    assert (item.package, item.qualname, item.file, item.line) == ("ant", "A.go", "ant/sub/b.py", 3)
    assert item.document == 'def go():\n    x = "go"\n    return x'


def test_both_sides_are_sorted(site):
    found = collect([site], 20)
    for side in (found.train, found.unseen):
        assert side == sorted(side, key=lambda item: (item.package, item.file, item.line))


def test_no_text_occurs_twice(site):
    write(
        site,
        {
            "ant/b.py": function("one", "The same query here."),
            "bee/b.py": function("two", "the  SAME query here."),
            "cat/b.py": function("one", "Another query, the same code."),
        },
    )
    found = collect([site], 20)
    assert found.skipped == {"repeated query": 1, "repeated document": 1}
    everything = found.train + found.unseen
    assert len({item.query.casefold() for item in everything}) == len(everything) == 81
    assert len({item.document for item in everything}) == len(everything)


def test_files_that_cannot_be_read_are_counted(site, recwarn, capfd):
    write(
        site,
        {
            "ant/broken.py": "def f(:\n",
            "ant/null.py": b"x = 1\x00",
            "ant/deep.py": "(" * 5000 + ")" * 5000,
            "ant/latin.py": "# -*- coding: latin-1 -*-\nx = 'é'".encode("latin-1"),
            "ant/warns.py": 'x = "\\d" is 1\n' + function("warns", "Warns about the escape."),
            "ant/bom.py": b"\xef\xbb\xbf"
            + function("bom", "Starts with a mark.").encode().replace(b"\n", b"\r\n"),
        },
    )
    (site / "ant/gone.py").symlink_to(site / "nowhere.py")
    found = collect([site], 20)
    assert found.skipped == {"syntax error": 3, "not UTF-8": 1, "unreadable": 1}
    documents = {item.query: item.document for item in found.train + found.unseen}
    assert documents["Starts with a mark."] == 'def bom():\n    x = "bom"\n    return x'
    assert "Warns about the escape." in documents
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name",
    [
        "ant/tests/a.py",
        "ant/test_a.py",
        "ant/a_test.py",
        "ant/conftest.py",
        "ant/_vendor/a.py",
        "ant/extern/b/a.py",
        "moembed/a.py",
        "ant-1.0.dist-info/a.py",
        "single.py",
    ],
)
def test_tests_vendored_code_and_ourselves_are_left_out(site, name):
    write(site, {name: function("left_out", "Should not be here.")})
    found = collect([site], 20)
    assert found.files == 6
    assert "left_out" not in {item.qualname for item in found.train + found.unseen}


def test_a_function_inside_a_function_and_a_class_are_no_pairs(site):
    inner = textwrap.indent(function("inner", "Lives inside another one."), "    ")
    cell = 'class Cell:\n    """Is a class indeed."""\n    x = 1\n    y = 2\n'
    write(site, {"ant/b.py": f"def outer():\n{inner}    return inner\n{cell}"})
    found = collect([site], 20)
    assert (found.files, len(found.train + found.unseen)) == (7, 80)


def test_folders_of_one_distribution_are_one_package(site):
    write(
        site,
        {
            "Zoo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: Zoo\nVersion: 1.0\n",
            "Zoo-1.0.dist-info/RECORD": "ant/a.py,,\nbee/a.py,,\n../../bin/zoo,,\n",
        },
    )
    found = collect([site], 20)
    assert by_package(found.train + found.unseen) == {"Zoo": 20, "cat": 10, "dog": 10, "eel": 10, "whale": 30}


def test_asking_for_too_many_unseen_documents_is_refused(site):
    with pytest.raises(UserError, match="hold 80 docstring pairs, too few to set 60 aside"):
        collect([site], 60)
    with pytest.raises(UserError, match="hold 0 docstring pairs"):
        collect([site / "nothing"], 1)


def test_several_processes_find_the_same(site, monkeypatch):
    alone = collect([site], 20)
    monkeypatch.setattr(docstrings, "_FILES_PER_WORKER", 1)
    monkeypatch.setattr(docstrings.os, "cpu_count", lambda: 2)
    assert collect([site], 20) == alone


def test_a_script_without_a_main_guard_reads_them(site, tmp_path):
    script = tmp_path / "script.py"
    lines = [
        "import os",
        "from pathlib import Path",
        "from moembed.data import docstrings",
        "docstrings._FILES_PER_WORKER = 1",
        "os.cpu_count = lambda: 2",
        f"found = docstrings.collect([Path({str(site)!r})], 20)",
        "print(len(found.train) + len(found.unseen))",
    ]
    script.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "80\n", "")


def test_known_packages_are_set_aside_before_the_largest():
    names = ["pyarrow", "networkx", "pydantic", "pillow", "rich", "torch", "transformers", "sympy"]
    unseen = docstrings._unseen_packages([item for name in names for item in fake(name)], 50)
    assert unseen == {"pyarrow", "networkx", "pydantic", "pillow", "rich"}


def fake(name):
    return [docstrings.CodePair(f"{name} {i}", "", name, "", "", i) for i in range(10)]


@pytest.mark.slow
def test_an_environment_with_torch_holds_enough_pairs():
    found = collect()
    assert len(found.train) + len(found.unseen) > 30_000
    assert 6000 <= len(found.unseen) <= 8000
    assert len(found.unseen_packages) >= 8
    assert not set(found.unseen_packages) & set(found.train_packages)
    assert {"torch", "transformers"} <= set(found.train_packages)
