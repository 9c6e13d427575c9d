"""How the tree hangs together: no circle of files, a pure recipe language, short files."""

import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests.lanes import CLUSTERS, LAST

ROOT = Path(__file__).parents[1]
PACKAGES = ("se_model", "pipelines", "tuning", "cluster")
LONGEST = 300
STARTS_A_CLUSTER = re.compile(
    r"local_ray|ray_head|espan: Command|running_program\(|with driver\(|\bray\.init\(|\bray_session\(\)$",
    re.MULTILINE,
)


def test_no_file_imports_itself_through_others() -> None:
    """Also not for types alone: what two files need of each other belongs into one, or into a third."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False)
    waiting = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    while free := [module for module, imported in waiting.items() if not imported & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert not waiting, f"a circle of imports runs through some of {sorted(waiting)}"


def test_reading_a_recipe_imports_no_heavy_library() -> None:
    code = "import sys; from pipelines.recipe.parse import read_recipe; read_recipe(sys.argv[1]);"
    code += "print([name for name in ('torch', 'ray', 'transformers', 'fsspec') if name in sys.modules])"
    recipe = ROOT / "pipelines/recipes/quickstart.yaml"
    done = subprocess.run(
        [sys.executable, "-c", code, str(recipe)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks"])
def test_files_are_short(package: str) -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > LONGEST
    }
    assert long == {}


def test_files_that_start_clusters_are_dealt_to_the_process_that_has_them() -> None:
    """Where the words do not show it, `no_ray_left_behind` finds it when the file's tests have run."""
    assert [name for name in (*CLUSTERS, *LAST) if not (ROOT / name).exists()] == []
    starting = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*/test_*.py")
        if STARTS_A_CLUSTER.search(path.read_text())
    ]
    assert len(starting) > 10
    assert [file for file in starting if not file.startswith((*CLUSTERS, *LAST))] == []
