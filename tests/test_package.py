"""The package: what ships, what importing it costs, what it leaves alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import explorer

ROOT = Path(__file__).parents[1]


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(path or "")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_installed_wheel_finds_its_space_files_from_anywhere(tmp_path: Path) -> None:
    pip = ["-m", "pip", "--disable-pip-version-check"]
    python(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT), cwd=tmp_path)
    (wheel,) = tmp_path.glob("swinexplore-*.whl")
    installed = tmp_path / "installed"
    python(*pip, "install", "-q", "--no-deps", "--target", str(installed), str(wheel), cwd=tmp_path)
    script = (
        "import explorer; from explorer.space import Space\nfrom explorer.space.file import shipped\n"
        "print(explorer.__file__, shipped());"
        "print(Space.load('swinfree.yaml').architectures)"
    )
    output = python("-c", script, cwd=tmp_path, path=installed)
    assert str(installed) in output
    assert "'demo.yaml', 'swinfree-large.yaml', 'swinfree.yaml'" in output
    assert output.splitlines()[-1] == "480"
    assert (installed / "explorer" / "py.typed").exists()
    assert list(installed.glob("swinexplore-*.dist-info/licenses/LICENSE"))


def test_importing_the_package_and_asking_for_help_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys, explorer, explorer.cli\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'optuna', 'sqlalchemy', 'matplotlib', 'plotly', 'numpy', 'pydantic', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    assert python("-c", script, cwd=tmp_path, path=ROOT).strip() == "[]"


def test_lower_rooms_import_no_tensor_library(tmp_path: Path) -> None:
    modules = "errors document arch space records complexity store pareto report cli training.recipe"
    script = "import sys\n" + "".join(f"import explorer.{module}\n" for module in modules.split())
    script += "print(sorted({'torch', 'onnx', 'onnxruntime', 'optuna', 'tensorrt'} & set(sys.modules)))\n"
    assert python("-c", script, cwd=tmp_path, path=ROOT).strip() == "[]"


def test_every_public_name_resolves() -> None:
    assert all(getattr(explorer, name) is not None for name in explorer.__all__)
    assert set(explorer.__all__) <= set(dir(explorer))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        explorer.nothing  # noqa: B018


def test_constraints_are_exact_versions_without_addresses() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+", line) for line in lines)
    project = (ROOT / "pyproject.toml").read_text()
    declared = project[project.index("dependencies = [") : project.index("[project.scripts]")]
    names = {name.lower().replace("_", "-") for name in re.findall(r'"([A-Za-z][\w.-]*)(?:>=|\[)', declared)} - {
        "swinexplore"
    }
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert names <= pinned, names - pinned


def test_versions_agree() -> None:
    assert f"version: {explorer.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {explorer.__version__}" in (ROOT / "CHANGELOG.md").read_text()
