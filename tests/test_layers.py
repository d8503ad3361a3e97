"""Imports inside hpcdat point downwards, and its packages import one another in no circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

LAYERS = (
    "__main__",
    "cli",
    "api",
    "doctor",
    "commands",
    "report",
    "performance",
    "training",
    "evaluation",
    "data",
    "exchange",
    "attacks",
    "slurm",
    "models",
    "optim",
    "tracking",
    "storage",
    "distributed",
    "hardware",
    "emulation",
    "out_of_memory",
    "user_code",
    "user_cache",
    "config",
    "install",
    "progress",
    "seeds",
    "errors",
    "__init__",
)
"""What stands directly in hpcdat, from the top: each imports only from those below it."""


def find_imports(folder):
    """The imports of a package's modules by one another, in functions and under TYPE_CHECKING too.

    Returns:
        Of each: file and line, the importing module, the imported module.
    """
    files = {}
    for file in sorted(folder.rglob("*.py")):
        module = file.relative_to(folder.parent).with_suffix("")
        files[".".join(module.parts if module.name != "__init__" else module.parent.parts)] = file
    found = []
    for module, file in files.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}:{node.lineno}: a relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                # Of a.b.c it may be the module, or the name c in the module a.b.
                imported = name if name in files else name.rpartition(".")[0]
                if imported in files:
                    place = f"{file.relative_to(folder.parent)}:{node.lineno}"
                    found.append((place, module, imported))
    return found


def layer_of(module):
    return (*module.split("."), "__init__")[1]


def package_of(module, folder):
    """The package that holds a module; a module that stands directly in the folder is taken by itself."""
    if (folder.parent / module.replace(".", "/")).is_dir() or module.count(".") < 2:
        return module
    return module.rpartition(".")[0]


def find_upward(folder, layers):
    """The imports that point upwards."""
    return [
        f"{place}: {module} imports {imported}"
        for place, module, imported in find_imports(folder)
        if layers.index(layer_of(imported)) < layers.index(layer_of(module))
    ]


def find_circle(folder):
    """The imports of a circle of packages; an empty list if there is none."""
    edges = {}
    for place, module, imported in find_imports(folder):
        edge = package_of(module, folder), package_of(imported, folder)
        if edge[0] != edge[1]:
            edges.setdefault(edge, f"{place}: {module} imports {imported}")
    graph = {}
    for importing, imported in edges:
        graph.setdefault(importing, set()).add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [edges[imported, importing] for importing, imported in pairwise(error.args[1])]
    return []


def test_every_package_and_module_has_a_layer():
    # Git leaves a folder whose modules have gone where Python has put its bytecode there.
    files = [file.relative_to(CHECKOUT / "hpcdat") for file in (CHECKOUT / "hpcdat").rglob("*.py")]
    assert {Path(file.parts[0]).stem for file in files} == set(LAYERS)


def test_imports_point_downwards():
    assert find_upward(CHECKOUT / "hpcdat", LAYERS) == []


def test_no_packages_import_one_another_in_a_circle():
    assert find_circle(CHECKOUT / "hpcdat") == []


@pytest.mark.parametrize(
    "text",
    [
        "from house.attic import box",
        "from house.attic.box import lid",
        "import house.attic.box",
        "def f():\n    from house import attic",
        "if TYPE_CHECKING:\n    from house.attic.box import lid",
    ],
)
def test_an_upward_import_is_found_in_any_form(tmp_path, text):
    for name in ("attic", "cellar"):
        (tmp_path / "house" / name).mkdir(parents=True)
        (tmp_path / "house" / name / "__init__.py").touch()
    (tmp_path / "house" / "__init__.py").touch()
    (tmp_path / "house" / "attic" / "box.py").write_text("from house.cellar import shelf")
    (tmp_path / "house" / "cellar" / "shelf.py").write_text("import os")
    assert find_upward(tmp_path / "house", ("attic", "cellar", "__init__")) == []
    assert find_circle(tmp_path / "house") == []

    (tmp_path / "house" / "cellar" / "shelf.py").write_text(text)
    place = f"house/cellar/shelf.py:{len(text.splitlines())}"
    (upward,) = find_upward(tmp_path / "house", ("attic", "cellar", "__init__"))
    assert upward.startswith(f"{place}: house.cellar.shelf imports house.attic")
    assert sorted(line.split(":")[0] for line in find_circle(tmp_path / "house")) == [
        "house/attic/box.py",
        "house/cellar/shelf.py",
    ]
