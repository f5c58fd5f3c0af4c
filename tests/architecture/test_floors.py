"""Who may import whom, how long a file may be, what must not stand in it; read from the source with `ast`."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pyramid", "lam", "idm", "neural_traj", "vla")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 500

# The floors of the house: a file imports from lower floors, or from its own room.
FLOORS = {
    "pyramid": 0,
    "pyramid.types": 0,
    "pyramid.errors": 0,
    "pyramid.config": 0,
    "pyramid.files": 0,
    "pyramid.findings": 0,
    "pyramid.remote": 0,
    "pyramid.uploads": 0,
    "pyramid.receipts": 0,
    "pyramid.rng": 0,
    "pyramid.jobs": 0,
    "pyramid.progress": 0,
    "pyramid.parquet": 0,
    "pyramid.table": 0,
    "pyramid.verbs": 0,
    "pyramid.normalize": 0,
    "pyramid.actions": 0,
    "pyramid.corpora": 1,
    "pyramid.shards": 1,
    "pyramid.lerobot": 1,
    "pyramid.video": 1,
    "pyramid.nn": 1,
    "pyramid.labels": 2,
    "pyramid.conversion": 2,
    "pyramid.mixture": 2,
    "pyramid.training": 2,
    "pyramid.sim": 2,
    "lam": 3,
    "idm": 3,
    "neural_traj": 4,
    "vla": 4,
    "pyramid.report": 5,
    "pyramid.tour": 5,
    "pyramid.command": 5,
    "pyramid.cli": 5,
}
NO_TORCH = ("vla.deploy.runtime", "vla.deploy.protocol", "vla.deploy.client", "vla.deploy.serve", "vla.deploy.control")
HEAVY = ("torch", "lightning", "transformers")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The longest name in the plan of the house that the module lies in."""
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in FLOORS and not (n == 1 and parts[0] == "pyramid" and len(parts) > 1):
            return ".".join(parts[:n])
    raise AssertionError(f"{module} has no room in the house: give it a floor in {__file__}")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax; parsing all files takes seconds, and several tests ask."""
    return ast.parse(path.read_text())


@functools.cache
def imports_of(path: Path) -> list[tuple[int, str]]:
    """Every import of our packages in a file, wherever it stands, as (line, module)."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            found += [(node.lineno, _target(str(node.module), alias.name)) for alias in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] in PACKAGES]


def _target(module: str, name: str) -> str:
    """`from pyramid import files` names a module; `from pyramid.files import join` a thing in one."""
    inner = ROOT / Path(*module.split("."), name)
    return f"{module}.{name}" if inner.with_suffix(".py").exists() or (inner / "__init__.py").exists() else module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    own = room_of(module_of(path))
    if own == "pyramid":
        return  # The package's face: names for type checkers, imported by name when they are asked for.
    upward = [
        f"{path.name}:{line} imports {name}"
        for line, name in imports_of(path)
        if (other := room_of(name)) != own and not _inside_data_side(own, other) and FLOORS[other] >= FLOORS[own]
    ]
    assert not upward, upward


def _inside_data_side(own: str, other: str) -> bool:
    """Rooms of one floor of `pyramid` are one package; the models are not."""
    return FLOORS[own] == FLOORS[other] and own.startswith("pyramid") and other.startswith("pyramid")


def test_a_wrong_import_would_be_seen() -> None:
    assert room_of("pyramid.shards.reader") == "pyramid.shards"
    assert _target("pyramid", "files") == "pyramid.files"
    assert _target("pyramid.files", "join") == "pyramid.files"
    assert FLOORS[room_of("lam.model")] == FLOORS[room_of("idm.model")]
    assert not _inside_data_side("lam", "idm")


def rooms_in_a_circle() -> list[str]:
    """Files of one floor that import each other in a loop."""
    graph = {module_of(p): {name for _, name in imports_of(p)} for p in FILES if module_of(p) != "pyramid"}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if circle := visit(other, (*trail, name)):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(graph) if (circle := visit(name, ()))), [])


def test_no_imports_in_a_circle() -> None:
    assert rooms_in_a_circle() == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_is_not_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_most_files_are_short() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in FILES)
    assert lengths[len(lengths) // 2] <= 150


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_first_line_says_what_the_file_holds(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), "a module begins with what it holds"


FORBIDDEN_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system", "pickle.loads", "pickle.load"}
FORBIDDEN_MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}


def forbidden_in(tree: ast.AST) -> list[str]:
    """Ways in which data could become code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in FORBIDDEN_CALLS:
                found.append(f"line {node.lineno}: {name}()")
            if name == "torch.load" and not _keyword_is_true(node, "weights_only"):
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
            for keyword in node.keywords:
                if (
                    keyword.arg in ("shell", "trust_remote_code", "allow_pickle")
                    and ast.unparse(keyword.value) != "False"
                ):
                    found.append(f"line {node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            found += [f"line {node.lineno}: import {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
    return found


def _keyword_is_true(call: ast.Call, name: str) -> bool:
    return any(k.arg == name and ast.unparse(k.value) == "True" for k in call.keywords)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_data_never_becomes_code(path: Path) -> None:
    assert forbidden_in(tree_of(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec('x = 1')",
        "subprocess.run('ls', shell=True)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "np.load(f, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
    ],
)
def test_each_forbidden_thing_is_found(line: str) -> None:
    assert len(forbidden_in(ast.parse(line))) == 1


def loaded_after(code: str) -> set[str]:
    """Top-level names of the modules that are loaded once ``code`` has run in a fresh interpreter."""
    script = f"{code}\nimport sys; print('\\n'.join(sorted(m.split('.')[0] for m in sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stderr.split())


def test_help_is_light() -> None:
    assert loaded_after("import pyramid.cli; pyramid.cli.main(['--help'])").isdisjoint(
        {*HEAVY, "numpy", "pyarrow", "av"}
    )


def test_data_verbs_need_no_torch() -> None:
    assert loaded_after("import pyramid.corpora.scan, pyramid.shards.pack, pyramid.shards.verify").isdisjoint(HEAVY)


def test_what_trains_nothing_needs_no_trainer() -> None:
    """It takes seconds to import, in every process of a job and at every call of the command."""
    loaded = loaded_after("import idm.label, lam.label, pyramid.mixture.loader, vla.policy")
    assert loaded.isdisjoint({"lightning", "transformers", "torchmetrics"})


@pytest.mark.parametrize("module", [m for m in NO_TORCH if (ROOT / Path(*m.split("."))).with_suffix(".py").exists()])
def test_what_runs_on_a_robot_needs_no_torch(module: str) -> None:
    assert loaded_after(f"import {module}").isdisjoint(HEAVY)


def test_a_file_stays_in_one_process(request: pytest.FixtureRequest) -> None:
    """What a file's fixtures make is made once: xdist tells groups by the ends of names, which not every pytest lets it
    change."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@test_floors")


def test_help_answers_in_half_a_second() -> None:
    """The fastest of five, since the machine may be busy; the limit is what is promised to users."""
    call = "import pyramid.cli; pyramid.cli.main(['--help'])"
    code = f"import time; t = time.perf_counter(); {call}; d = time.perf_counter() - t"
    runs = []
    for _ in range(5):
        script = f"{code}\nimport sys; print(d, file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        runs.append(float(done.stderr))
    assert min(runs) < 0.5
