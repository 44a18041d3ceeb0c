"""The house rules that a machine can check: directions of imports, sizes, docstrings, forbidden calls, tests that assert."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "mlperf_opt").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MOST_LINES = 320
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "instantiate", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
FORBIDDEN_CALLS |= {"hydra.utils.instantiate", "hydra.utils.call", "np.load", "numpy.load", "marshal.loads", "os.system"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
COMPARISONS = {"array_equal", "allclose", "isclose", "array_equiv", "all", "any"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _name(path):
    return str(path.relative_to(ROOT))


@cache
def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _dotted(node):
    """`a.b.c` of a call's function, `""` for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


each_module = pytest.mark.parametrize("path", PACKAGE, ids=_name)
each_test_file = pytest.mark.parametrize("path", TESTS, ids=_name)


def test_imports_point_down():
    """The layers of pyproject.toml hold (import-linter)."""
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@each_module
def test_files_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{lines} lines"


def test_no_drawer_for_odds_and_ends():
    drawers = [_name(path) for path in PACKAGE if path.stem in {"utils", "util", "helpers", "misc", "common"}]
    assert drawers == []


def _calls_and_modules(path):
    tree = _tree(path)
    calls = {_dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return calls, {name.split(".")[0] for name in _imports(tree)}


@each_module
def test_yaml_and_files_are_data_never_code(path):
    calls, modules = _calls_and_modules(path)
    if "allow_pickle=False" in path.read_text(encoding="utf-8"):
        calls -= {"np.load", "numpy.load"}
    assert calls & FORBIDDEN_CALLS == set()
    assert modules & FORBIDDEN_MODULES == set()


@pytest.mark.parametrize(
    "library, home",
    [
        ("safetensors", "artifacts/container.py"),
        ("constriction", "artifacts/"),
        ("onnx", "onnx_export/proto.py"),
        ("onnxruntime", "runtimes/onnx_runtime.py"),
    ],
)
def test_a_file_library_is_imported_in_one_place(library, home):
    users = [_name(path) for path in PACKAGE if library in _calls_and_modules(path)[1]]
    assert len(users) == 1 and home in users[0], users


def _undocumented(body, prefix=""):
    for node in body:
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node) and not _is_excused(node, prefix):
            yield f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node.body, f"{node.name}.")


def _is_excused(node, prefix):
    """A method or property of a class: the class or the protocol that it fulfils says what it does."""
    return bool(prefix) and isinstance(node, FUNCTIONS)


@each_module
def test_whatever_is_public_has_a_docstring(path):
    tree = _tree(path)
    assert path.name == "__main__.py" or ast.get_docstring(tree), "the module"
    assert list(_undocumented(tree.body)) == []


@each_test_file
def test_no_comparison_is_thrown_away(path):
    """`np.array_equal(a, b)` as a statement checks nothing."""
    thrown = [
        f"line {node.lineno}"
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Expr)
        and (
            isinstance(node.value, ast.Compare | ast.BoolOp)
            or (isinstance(node.value, ast.Call) and _dotted(node.value.func).rpartition(".")[2] in COMPARISONS)
        )
    ]
    assert thrown == []


def _checks(node):
    """Whether a statement or call can fail the test."""
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, ast.Call):
        called = _dotted(node.func)
        last = called.rpartition(".")[2].lstrip("_")
        return called in {"pytest.raises", "pytest.fail", "pytest.warns"} or last.startswith(("assert_", "check_"))
    return False


def _idle_tests(tree):
    """Names of the tests that neither check anything nor call a function of their own file that does."""
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    checking = {node.name for node in functions if any(_checks(n) for n in ast.walk(node))}
    for node in functions:
        called = {_dotted(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
        if node.name.startswith("test_") and node.name not in checking and not called & checking:
            yield node.name


@each_test_file
def test_every_test_can_fail(path):
    assert list(_idle_tests(_tree(path))) == []


@pytest.mark.parametrize(
    "source, idle",
    [
        ("def test_a():\n    f()", ["test_a"]),
        ("def test_a():\n    np.array_equal(a, b)", ["test_a"]),
        ("def test_a():\n    assert f()", []),
        ("def test_a():\n    with pytest.raises(ValueError):\n        f()", []),
        ("def test_a():\n    np.testing.assert_array_equal(a, b)", []),
        ("def test_a():\n    for x in y:\n        _check_row(x)", []),
        ("def same(a):\n    assert a\ndef test_a():\n    same(1)", []),
        ("def same(a):\n    return a\ndef test_a():\n    same(1)", ["test_a"]),
        ("class TestA:\n    def test_b(self):\n        self.f()", ["test_b"]),
    ],
)
def test_the_check_of_idle_tests_finds_them(source, idle):
    assert list(_idle_tests(ast.parse(source))) == idle
