"""What README and docs tell a reader to type works, and what they point to is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from explorer.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SPACE = """\
version: 1
base: Swin-E16x2.2.2.2-R56-P1-N10
search: {br: [off, on]}
proxy: {unit: 2, embed_dim: 8, head_dim: 4, patch_size: 2}
"""


def commands() -> list[str]:
    """Every `$ swinexplore ...` line, in the order of the pages."""
    lines = [line for page in PAGES for line in page.read_text().splitlines()]
    return [line.removeprefix("$ ").strip() for line in lines if line.startswith("$ swinexplore")]


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "small.yaml").write_text(SPACE)
    (folder / "recipe.yaml").write_text("epochs: 1\nbatch_size: 32\ntrain_images: 64\neval_images: 64\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner().invoke(
            app, ["search", "--space", "small.yaml", "--recipe", "recipe.yaml", "--trials", "2", "--study", "NAME"]
        )
    assert result.exit_code == 0, result.output
    return folder


def test_there_are_commands_to_try() -> None:
    assert len(commands()) >= 10


@pytest.mark.parametrize("command", commands())
def test_command_of_the_docs_works(command: str, studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches stop at their plan; a training is only parsed, for the want of its data."""
    monkeypatch.chdir(studied)
    arguments = shlex.split(command)[1:]
    if arguments[0] == "search" and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    result = CliRunner().invoke(app, arguments)
    if arguments[0] == "train":
        assert result.exit_code == 2
        assert "IMAGENET_FOLDER" in result.stderr
    else:
        assert result.exit_code == 0, result.output


def test_python_of_the_readme_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "480 Swin-Free-B" in done.stdout


def test_space_file_of_the_guide_loads(tmp_path: Path) -> None:
    from explorer.space import Space

    (content,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.DOTALL)
    (tmp_path / "guide.yaml").write_text(content)
    assert Space.load(tmp_path / "guide.yaml").architectures > 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_named_are_there(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (page.parent / link).exists(), link
    for named in re.findall(r"`((?:explorer|spaces|studies|tests|docs)/[\w./-]*)`", text):
        assert (ROOT / named).exists(), named


def test_map_of_the_readme_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text()
    for module in (ROOT / "explorer").iterdir():
        if module.name.startswith("__") or module.suffix not in ("", ".py"):
            continue
        assert f"explorer/{module.name}" in readme, module.name


def test_readme_shows_a_real_demo() -> None:
    readme = (ROOT / "README.md").read_text()
    transcript = readme[readme.index("<!-- demo -->") : readme.index("<!-- /demo -->")]
    assert "done: study demo-" in transcript
    assert transcript.count("accuracy 0.") >= 8
