"""Every test that is written is run: files are collected, names do not shadow each other, markers are known."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))


def _defined_tests(tree: ast.Module) -> list[str]:
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test")]
    methods = [f"{kind.name}.{node.name}" for kind in classes for node in kind.body if isinstance(node, ast.FunctionDef)]
    return functions + [name for name in methods if name.split(".")[1].startswith("test")]


def test_tests_stand_only_in_files_that_pytest_collects():
    hidden = {str(path.relative_to(TESTS)) for path in FILES if not path.name.startswith("test_") and _defined_tests(_tree(path))}
    assert hidden == set()


def test_every_test_file_has_tests_and_each_has_its_own_name():
    for path in FILES:
        if path.name.startswith("test_"):
            names = Counter(_defined_tests(_tree(path)))
            assert names, f"{path.relative_to(TESTS)} tests nothing"
            assert max(names.values()) == 1, f"{path.relative_to(TESTS)}: {names.most_common(1)} shadows another"


def test_file_names_are_unique_over_the_tree():
    """Without packages, two files of one name cannot be imported side by side."""
    names = Counter(path.name for path in FILES if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_nothing_is_left_out_of_collection():
    for path in FILES:
        assigned = {
            target.id for node in _tree(path).body if isinstance(node, ast.Assign) for target in node.targets if hasattr(target, "id")
        }
        assert not assigned & {"collect_ignore", "collect_ignore_glob", "__test__"}, path
    settings = (TESTS.parent / "pyproject.toml").read_text()
    assert "--ignore" not in settings and "--deselect" not in settings and "norecursedirs" not in settings


def test_a_test_that_is_expected_to_fail_must_fail():
    """xfail without strict hides a repair as well as a new fault."""
    for path in FILES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "xfail":
                assert any(word.arg == "strict" for word in node.keywords), f"{path.relative_to(TESTS)}:{node.lineno}"


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
