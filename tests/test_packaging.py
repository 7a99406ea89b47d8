"""What goes into the wheel is what lies in the tree, and every promise of a name is kept."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import entry_points, packages_distributions, requires, version
from importlib.resources import files
from pathlib import Path

import pytest

import vitembed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_packages_are_the_folders_on_disk():
    # A folder that is missing in the list is missing in the wheel alone; an editable install has it all the same.
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "vitembed").rglob("__init__.py")}
    folders_with_code = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "vitembed").rglob("*.py")}
    assert folders_with_code == on_disk, "a folder with code and without __init__.py"
    assert set(SETUPTOOLS["packages"]) == on_disk | {"vitembed.configs", "vitembed_cli"}
    for folder in SETUPTOOLS["package-dir"].values():
        assert (ROOT / folder / "__init__.py").is_file()  # without it editable installs fail and wheels do not
        assert not [path for path in (ROOT / folder).rglob("*/*.py") if path.parent != ROOT / folder]


def test_data_files_are_packaged():
    patterns = SETUPTOOLS["package-data"]
    for package, folder in (
        ("vitembed", "vitembed"),
        ("vitembed.configs", "configs"),
        ("vitembed.demo", "vitembed/demo"),
    ):
        packaged = {path for pattern in patterns[package] for path in (ROOT / folder).glob(pattern)}
        others = {"vitembed": {"demo"}}.get(package, set())
        data = {
            path
            for path in (ROOT / folder).rglob("*")
            if path.is_file()
            and path.suffix not in (".py", ".pyc")
            and path.relative_to(ROOT / folder).parts[0] not in others
        }
        assert packaged == data


@pytest.mark.parametrize("name", vitembed.__all__)
def test_public_names_resolve(name):
    assert getattr(vitembed, name) is not None
    assert name in dir(vitembed)


def test_type_checkers_see_the_same_names():
    source = (ROOT / "vitembed" / "__init__.py").read_text(encoding="utf-8")
    block = source.split("if TYPE_CHECKING:", 1)[1].split("\ndef ", 1)[0]
    seen = {name.strip() for names in re.findall(r"from \S+ import (.+)", block) for name in names.split(",")}
    assert seen == set(vitembed._HOMES)
    assert set(vitembed.__all__) == seen | {"__version__"}


def test_unknown_public_name():
    with pytest.raises(AttributeError, match="has no attribute 'embeddings_of_doom'"):
        vitembed.embeddings_of_doom  # noqa: B018


def test_versions_agree():
    assert vitembed.__version__ == PROJECT["project"]["version"]
    assert version("vitembed") == vitembed.__version__, "run `make setup`"


def test_configs_are_resources():
    names = sorted(entry.name for entry in files("vitembed.configs").iterdir() if entry.name.endswith(".yaml"))
    assert names == sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
    for name in names:
        assert (files("vitembed.configs") / name).read_text(encoding="utf-8").startswith("# ")


def test_console_script():
    (script,) = entry_points(group="console_scripts", name="vitembed")
    assert script.value == "vitembed_cli.main:app"


def test_folders_are_no_top_level_modules(tmp_path):
    # From a foreign folder: `python -m` puts the current one on the path, where they are found of course.
    code = "import importlib.util; print([n for n in ('cli', 'configs', 'tests') if importlib.util.find_spec(n)])"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_each_dependency_has_a_pin_and_a_lower_bound():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for requirement in requires("vitembed"):
        name = re.match(r"[\w-]+", requirement)[0]
        assert re.search(rf"^{name}==", pins, re.MULTILINE), f"{name} has no line in constraints.txt"
        assert ">=" in requirement
    assert not [line for line in pins.splitlines() if line and not line.startswith("#") and "==" not in line]


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (str(word.value).split(".")[0] for word in node.args if isinstance(word, ast.Constant))


# Imported only where an extra is installed: module and distribution.
OPTIONAL = {"timm": "timm", "umap": "umap-learn", "pillow_heif": "pillow-heif", "rawpy": "rawpy"}


def test_all_that_is_imported_is_declared_and_the_other_way_round():
    declared = {re.match(r"[\w-]+", text)[0] for text in PROJECT["project"]["dependencies"]} - {
        "faiss-cpu",
        "faiss-gpu",
    }
    homes = packages_distributions()
    sources = [*(ROOT / "vitembed").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    modules = {module for path in sources for module in imported_modules(path)} - set(sys.stdlib_module_names)
    assert "faiss" in modules
    extras = " ".join(text for extra in PROJECT["project"]["optional-dependencies"].values() for text in extra)
    assert all(f"{distribution}>=" in extras for distribution in OPTIONAL.values())
    modules -= OPTIONAL.keys()
    assert {home for module in modules - {"vitembed", "faiss", ""} for home in homes[module]} == declared
