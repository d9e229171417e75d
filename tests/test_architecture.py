"""Who may import whom, and what importing costs. The folders are explained in docs/architecture.md."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

# A room, and what none of its files imports, in functions either.
FORBIDDEN = [
    ("kernels", ("engine", "launch")),
    ("engine", ("launch",)),
    ("engine.data", ("engine.model", "engine.optim", "engine.checkpoint", "engine.training", "engine.tasks")),
    ("engine.model", ("engine.data", "engine.optim", "engine.checkpoint", "engine.training", "engine.tasks")),
    ("engine.optim", ("engine.data", "engine.model", "engine.checkpoint", "engine.training", "engine.tasks")),
    ("engine.distributed", ("engine.data", "engine.model", "engine.checkpoint", "engine.training", "engine.tasks")),
    ("engine.configuration", ("engine.data", "engine.model", "engine.checkpoint", "engine.training", "engine.tasks")),
    ("engine.provenance", ("engine.model", "engine.optim", "engine.checkpoint", "engine.training", "engine.tasks")),
    ("engine.training", ("engine.benchmark", "engine.synthetic")),
    ("engine.tasks", ("engine.benchmark", "engine.synthetic")),
]
MOST_FILES = 10  # in a folder of the engine
SECONDS = 2.0


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for room in ("kernels", "engine", "launch") for path in (ROOT / room).rglob("*.py")}


@cache
def imports_of(module: str) -> dict[str, bool]:
    """Our modules that one imports, wherever the import stands, and whether importing it imports them at once."""
    tree = ast.parse(MODULES[module].read_text())
    late = {id(node) for part in ast.walk(tree) if is_late(part) for node in ast.walk(part)}
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        for name in names:
            if name in MODULES:
                found[name] = found.get(name, False) or id(node) not in late
    return found


def is_late(part: ast.AST) -> bool:
    """Whether its imports run later, or never: in a function, or for types alone."""
    for_types = isinstance(part, ast.If) and isinstance(part.test, ast.Name) and part.test.id == "TYPE_CHECKING"
    return for_types or isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)


def reached_from(module: str) -> set[str]:
    """All of our modules that are there once one is imported."""
    found, todo = set(), [module]
    while todo:
        new = todo.pop()
        if new not in found:
            found.add(new)
            todo += [name for name, at_once in imports_of(new).items() if at_once]
    return found


def is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def test_imports_are_seen() -> None:
    """Else nothing below could fail."""
    assert len(MODULES) > 100
    assert imports_of("engine.training.run")["engine.checkpoint.saving"] is True
    assert imports_of("engine.training.program")["engine.training.run"] is False
    assert imports_of("engine.tasks.task")["engine.checkpoint.state"] is False
    assert "engine.optim.schedules" in reached_from("engine.training.run")


@pytest.mark.parametrize(("room", "others"), FORBIDDEN, ids=[room for room, _ in FORBIDDEN])
def test_imports_go_one_way(room: str, others: tuple[str, ...]) -> None:
    members = [module for module in MODULES if is_in(module, room)]
    assert members
    arrows = [
        f"{module} -> {name}"
        for module in members
        for name in imports_of(module)
        if any(is_in(name, other) for other in others)
    ]
    assert arrows == []


def test_the_loop_knows_no_checkpoint() -> None:
    reached = reached_from("engine.training.loop")
    assert "engine.data.loading" in reached
    assert [module for module in reached if is_in(module, "engine.checkpoint")] == []


def test_folders_are_small() -> None:
    folders = [path for path in (ROOT / "engine").rglob("*") if path.is_dir() and path.name != "__pycache__"]
    assert len(folders) > 10
    assert {folder.name: n for folder in folders if (n := len(list(folder.glob("*.py")))) > MOST_FILES} == {}
    beside = ["__init__.py", "commands.py", "errors.py", "files.py", "importing.py", "printing.py", "progress.py"]
    assert sorted(path.name for path in (ROOT / "engine").glob("*.py")) == beside


IMPORT = """
import resource, sys
{imports}
cpu = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in {heavy} if name in sys.modules]
started = "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()
print(heavy, started, cpu.ru_utime + cpu.ru_stime)
"""


@pytest.mark.parametrize(
    ("imports", "heavy"),
    [
        ("import kernels, engine, launch", ["torch", "triton", "deepspeed", "transformers"]),
        ("import engine.data.splits, engine.data.sampler, engine.data.dataset", ["torch", "deepspeed"]),
        # What answers --help, --print_config and a wrong flag.
        ("import engine.training.program, engine.tasks.pretraining, engine.tasks.named", ["torch", "deepspeed"]),
        ("import engine.tasks.answering.flags, engine.conversion.flags, engine.app.command", ["torch", "deepspeed"]),
        ("import launch.compare, launch.report, engine.report.page", ["torch", "deepspeed", "matplotlib"]),
        ("import engine.data.verification.command, engine.synthetic.command", ["torch", "deepspeed"]),
        ("import engine.data.inspection.command", ["torch", "deepspeed", "datasets", "pyarrow"]),
        ("import kernels.grid_subsample", ["deepspeed", "transformers"]),
    ],
    ids=["packages", "data", "training flags", "other flags", "reports", "preparation", "inspection", "kernels"],
)
def test_importing_is_cheap(imports: str, heavy: list[str]) -> None:
    """In seconds of this process's own, which other processes don't lengthen; torch alone takes most of two."""
    program = IMPORT.format(imports=imports, heavy=heavy)
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    loaded, started, seconds = run.stdout.rsplit("] ", 1)[0] + "]", *run.stdout.rsplit("] ", 1)[1].split()
    assert (loaded, started) == ("[]", "False")
    if heavy[0] == "torch":
        assert float(seconds) < SECONDS
