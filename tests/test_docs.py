"""What the documentation names is there: files, modules, tests and functions."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "CHANGELOG.md")  # which speaks of what was
NOT_OURS = {"trust_remote_code"}
ROOMS = "se_model|pipelines|tuning|cluster|infra|docs|tests|benchmarks"


@pytest.fixture(scope="module")
def sources() -> str:
    files = (file for room in ROOMS.split("|") for file in (ROOT / room).rglob("*.py"))
    return "\n".join(file.read_text() for file in files)


def _spans(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_exist(page: Path) -> None:
    paths = [span for span in _spans(page) if re.fullmatch(rf"(?:{ROOMS})/[\w./*-]*", span)]
    missing = [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]
    for span in _spans(page):
        if found := re.fullmatch(rf"((?:{ROOMS})(?:\.\w+)+)", span):
            *folders, last = found[1].split(".")
            module, member = ROOT.joinpath(*folders, last), ROOT.joinpath(*folders)
            in_file = (
                member.with_suffix(".py") if member.with_suffix(".py").is_file() else member / "__init__.py"
            )
            named = in_file.is_file() and re.search(rf"\b{last}\b", in_file.read_text())
            if not (module.is_dir() or module.with_suffix(".py").is_file() or named):
                missing.append(span)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_functions_classes_and_tests_exist(page: Path, sources: str) -> None:
    spans = _spans(page)
    called = {name for span in spans for name in re.findall(r"(?<![.\w])(\w+)(?=\(\))", span)}
    named = {span for span in spans if re.fullmatch(r"[A-Za-z]\w*(?:_\w+|[a-z][A-Z]\w*)", span)}
    missing = [name for name in sorted(called) if not re.search(rf"\b(?:def|class) {name}\b", sources)]
    if page.name != "README.md":  # whose tables have the names of other libraries' layers
        missing += [name for name in sorted(named - NOT_OURS) if not re.search(rf"\b{name}\b", sources)]
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert [name for name in missing if name not in files] == []
