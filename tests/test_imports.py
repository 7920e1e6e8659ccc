"""Imports run one way only, Triton is reached lazily, and nothing touches a GPU at import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = (
    ("_moved", "environment", "log", "files", "gpu", "context", "reparam", "ops.base", "ops.depthwise", "ops.dense", "ops.ffn",
     "ops.stem", "ops.problem", "ops.layout"),
    ("algorithms",),
    ("planning",),
    ("ops",),
    ("functional",),
    ("nn",),
    ("graph", "tools", "program"),
    ("models", "cli.options", "cli.networks"),
    ("bench",),
    ("cli",),
)
"""Layers, lowest first; a module imports from its own layer or from one below."""

RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def sources() -> dict[str, Path]:
    """Module name -> file, each file once; models and bench lie beside the package and are imported from inside it."""
    found = {}
    for top in ("lk_triton", "models", "bench"):
        for path in (ROOT / top).rglob("*.py"):
            if (ROOT / top / "models") in path.parents or (ROOT / top / "bench") in path.parents:
                continue  # through the symbolic link
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if top == "lk_triton" else ("lk_triton", *parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


SOURCES = sources()
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def imports(name: str, nodes: list[ast.AST]) -> set[str]:
    """Modules that the import statements among ``nodes`` of module ``name`` reach, in absolute form."""
    package = name.split(".") if SOURCES[name].name == "__init__.py" else name.split(".")[:-1]
    reached: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            reached |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            submodules = {f"{module}.{alias.name}" for alias in node.names} & SOURCES.keys()
            named_all = len(submodules) == len(node.names)
            reached |= submodules if named_all else submodules | {module}
    return reached


def at_import(tree: ast.Module) -> list[ast.AST]:
    """Every node that runs when the module is imported: no function bodies, nothing under TYPE_CHECKING."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        found.append(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += list(ast.iter_child_nodes(node))
    return found


def layer(module: str) -> str:
    """The longest entry of ORDER that ``module`` lies in."""
    parts = module.split(".")[1:]
    return next((name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in RANK), parts[0])


def test_every_module_has_a_layer() -> None:
    unknown = {m for m in SOURCES if m != "lk_triton" and layer(m) not in RANK}
    assert not unknown, f"add {unknown} to ORDER, where the design puts them"
    assert RANK.keys() == {layer(m) for m in SOURCES if m != "lk_triton"}, "ORDER names modules that do not exist"


@pytest.mark.parametrize("module", sorted(m for m in SOURCES if m != "lk_triton"))
def test_imports_run_one_way(module: str) -> None:
    """Also imports inside functions: a lazy import upwards is still an import upwards."""
    for reached in imports(module, list(ast.walk(TREES[module]))):
        if reached.split(".")[0] != "lk_triton" or reached == "lk_triton":
            continue
        assert RANK[layer(reached)] <= RANK[layer(module)], f"{module} imports {reached}, which stands above it"


def test_no_circles() -> None:
    graph = {m: imports(m, at_import(tree)) & SOURCES.keys() - {m} for m, tree in TREES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for reached in graph[module]:
                visit(reached, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_only_kernels_import_triton_at_module_level() -> None:
    for module, tree in TREES.items():
        if any(name.split(".")[0] == "triton" for name in imports(module, at_import(tree))):
            of_kernels = module.rpartition(".")[2].startswith("kernel") or module.startswith("lk_triton.algorithms.shared.")
            assert of_kernels, f"{module} imports triton at module level"


def run(code: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=1800)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_touches_neither_triton_nor_cuda() -> None:
    code = "import sys, torch, lk_triton, lk_triton.models; print('triton' in sys.modules, torch.cuda.is_initialized())"
    assert run(code) == "False False"


def test_works_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, lk_triton\n"
        "layer = lk_triton.nn.ReparamDepthwiseConv2d(4, 7).eval().reparameterize()\n"
        "print(lk_triton.explain(torch.ones(1, 4, 8, 8), layer.lkb_reparam.weight.detach()).plan.algorithm,"
        " layer(torch.ones(1, 4, 8, 8)).shape)"
    )
    assert run(code) == "onednn torch.Size([1, 4, 8, 8])"
