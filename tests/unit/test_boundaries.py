"""The rooms and the arrows between them: an import that runs back up is a failing test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the bottom up. A room may import the rooms before it, and those of its own line.
FLOORS = [
    {"errors", "manifest"},
    {"config", "storage", "cluster"},
    {"tasks"},
    {"corpus"},
    {"evaluation"},
    {"engine"},
    {"scoring", "training"},
    {"report"},
    {"measure"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted((ROOT / "mentalglm").rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "mentalglm").parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_arrows_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "mentalglm" and len(parts) > 1 and parts[1] in FLOOR:
            assert parts[1] == room or FLOOR[parts[1]] <= FLOOR[room], f"{room} imports {name}"


def test_vllm_is_imported_by_the_engine_room_alone_and_boto3_by_storage() -> None:
    for path in FILES:
        tops = {name.split(".")[0] for name in imports(path)}
        assert "vllm" not in tops or room_of(path) == "engine", path
        assert not tops & {"boto3", "botocore"} or path == ROOT / "mentalglm" / "storage" / "s3.py", path


@pytest.mark.parametrize("module", ["mentalglm.evaluation", "mentalglm.report.job"])
def test_evaluations_and_reports_need_neither_ray_nor_a_model(module: str) -> None:
    command = f"import sys, {module}; print(*{{'ray', 'torch', 'transformers', 'vllm'}} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_other_rooms_see_storage_and_not_what_it_is_made_of() -> None:
    for path in FILES:
        inside = {name for name in imports(path) if name.startswith("mentalglm.storage.")}
        assert not inside or room_of(path) == "storage", path


def test_entry_points_are_short() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 40
