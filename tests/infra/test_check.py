"""`infra/check.sh`: what it finds wrong, and that it leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
needs_terraform = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the script looks at."""
    shutil.copytree(ROOT / "infra", tmp_path / "infra")
    shutil.copytree(ROOT / "cluster" / "configs", tmp_path / "cluster" / "configs")
    return tmp_path


def check(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(tree / "infra" / "check.sh")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def files(tree: Path) -> set[Path]:
    return set(tree.rglob("*"))


@needs_terraform
def test_the_modules_pass_and_nothing_is_left_in_the_tree(tree: Path) -> None:
    before = files(tree)
    checked = check(tree)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "0 failed" in checked.stdout
    assert files(tree) == before


@needs_terraform
def test_the_first_thing_that_is_wrong_ends_the_check_with_a_code(tree: Path) -> None:
    security = tree / "infra" / "aws" / "security.tf"
    security.write_text(security.read_text().replace("  ip_protocol", "ip_protocol"))
    checked = check(tree)
    assert checked.returncode != 0
    assert "security.tf" in checked.stdout
    assert "passed" not in checked.stdout


@needs_terraform
def test_a_mirror_that_is_none_is_named(tree: Path) -> None:
    checked = check(tree, ESPAN_TERRAFORM_MIRROR=str(tree))
    assert checked.returncode == 1
    assert checked.stderr.splitlines() == [
        f"infra: {tree} (ESPAN_TERRAFORM_MIRROR) holds no registry.terraform.io"
    ]


def test_without_terraform_one_line_says_so(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    checked = check(tree, PATH=str(tmp_path / "bin"))
    assert checked.returncode == 1
    assert checked.stdout == ""
    assert len(checked.stderr.splitlines()) == 1
    assert "terraform is not installed" in checked.stderr
