"""What a kernel form runs, as syntax trees: its kernels with the device functions that they call, and the host's launch and
packing.

Beginning at the algorithm's ``ROOTS``, every name is resolved as Python would, to its definition in a module of ``FOLLOWED``,
wherever that lies. Docstrings, comments, the host's annotations, and where a definition lies are left out. So are the cost
model, ``why_not`` and ``configs``, ``launch_cache``, which repeats what was launched, and problems and GPUs, whose facts a
launch only reads.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lk_triton import algorithms
from lk_triton.algorithms import launch_cache, registry
from lk_triton.algorithms.base import TritonAlgorithm
from lk_triton.ops import layout

ROOT = Path(__file__).parents[2]
ROOTS = ("launch", "kernel_launch", "weight_format", "prepack")
FOLLOWED = (algorithms.__name__, layout.__name__)
LEFT_OUT = (launch_cache.__name__, registry.__name__)

OF_OTHER_FORMS = {"direct": "channels_last_launch", "direct_channels_last": "_planes_launch"}
"""Form -> a function of its algorithm that only the other form calls."""


class Definition(NamedTuple):
    """A function, class or constant, and the module that it is in."""

    module: str
    node: ast.stmt


def forms() -> dict[str, TritonAlgorithm]:
    """Every kernel form with its algorithm; algorithms without a Triton kernel have none."""
    triton = [a for a in registry.ALGORITHMS.values() if isinstance(a, TritonAlgorithm)]
    return {form: algorithm for algorithm in triton for form in algorithm.versions}


class Names(NamedTuple):
    """What the names of a module stand for: statements that define them, and (module, name) that imports take them from.

    ``of_kernels`` says that these are kernels or device functions, in which annotations count: the module imports Triton.
    """

    defined: dict[str, ast.stmt]
    imported: dict[str, tuple[str, str]]
    of_kernels: bool


class Sources:
    """The library's modules as syntax trees.

    Args:
        changed: module -> text that stands in for its file.
    """

    def __init__(self, changed: dict[str, str] | None = None) -> None:
        self.changed = changed or {}
        self.modules: dict[str, Names] = {}

    def hash(self, form: str) -> str:
        """Of everything that ``form`` runs."""
        texts = sorted(canonical(d.node, self._names(d.module).of_kernels) for d in self.closure(form))
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]

    def closure(self, form: str) -> list[Definition]:
        """Every definition that ``form`` runs, its config's class too."""
        algorithm = forms()[form]
        waiting = [self._method(type(algorithm), name) for name in ROOTS]
        waiting.append(self._resolve(algorithm.config_type.__module__, [algorithm.config_type.__name__]))
        found: list[Definition] = []
        while waiting:
            definition = waiting.pop()
            if definition is None or definition in found or getattr(definition.node, "name", "") == OF_OTHER_FORMS.get(form):
                continue
            found.append(definition)
            waiting += self._reached(definition, type(algorithm))
        return found

    def _reached(self, definition: Definition, algorithm: type[Any]) -> Iterator[Definition | None]:
        """What the names in a definition stand for; ``self`` is the algorithm."""
        module, node = definition
        local = _local_names(node)
        for parts in _references(node, annotations=self._names(module).of_kernels):
            if parts[0] == "self" and len(parts) > 1:
                yield self._method(algorithm, parts[1])
            elif parts[0] == "super":
                yield self._method(algorithm, parts[1], above=definition)
            elif parts[0] not in local:
                yield self._resolve(module, parts)

    def _method(self, algorithm: type[Any], name: str, above: Definition | None = None) -> Definition | None:
        """The method that ``algorithm`` calls ``name``; with ``above`` the next one behind that in its bases."""
        found: list[Definition] = []
        for kind in algorithm.__mro__:
            owner = self._resolve(kind.__module__, [kind.__name__])
            body = owner.node.body if owner and isinstance(owner.node, ast.ClassDef) else []
            found += [Definition(kind.__module__, n) for n in body if isinstance(n, ast.FunctionDef) and n.name == name]
        behind = found.index(above) + 1 if above is not None and above in found else 0
        return next(iter(found[behind:]), None)

    def _resolve(self, module: str, parts: list[str]) -> Definition | None:
        """What the dotted name ``parts`` stands for in ``module``; None where that is not followed."""
        if not module.startswith(FOLLOWED) or module in LEFT_OUT:
            return None
        names, (name, *rest) = self._names(module), parts
        if name in names.defined:
            return Definition(module, names.defined[name])
        package, name = names.imported.get(name, ("", ""))
        if package and _file(f"{package}.{name}").exists():
            return self._resolve(f"{package}.{name}", rest) if rest else None
        return self._resolve(package, [name])

    def _names(self, module: str) -> Names:
        """Of a module; an import inside a function counts as one of the module."""
        if module not in self.modules:
            tree = ast.parse(self.changed.get(module) or _file(module).read_text(encoding="utf-8"))
            imported: dict[str, tuple[str, str]] = {}
            parts = [*module.split("."), "__init__"] if _file(module).stem == "__init__" else module.split(".")
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.level:
                    package = ".".join([*parts[: -node.level], *filter(None, [node.module])])
                    imported |= {alias.asname or alias.name: (package, alias.name) for alias in node.names}
            defined = {name: node for node in tree.body for name in _defined(node)}
            self.modules[module] = Names(defined, imported, any(map(_imports_triton, tree.body)))
        return self.modules[module]


def canonical(value: Any, annotations: bool = True) -> str:
    """A syntax tree as text that is the same in every version of Python: without places, docstrings and empty fields.

    Args:
        annotations: whether those of arguments, results and variables count: in a kernel they do.
    """
    if isinstance(value, list):
        inside = [canonical(v, annotations) for v in value if not _says_nothing(v)]
        return f"[{','.join(inside)}]"
    if not isinstance(value, ast.AST):
        return repr(value)
    skipped = {"ctx", "kind", "type_comment", "type_params"} | (set() if annotations else {"annotation", "returns"})
    fields = [(name, v) for name, v in ast.iter_fields(value) if name not in skipped and v is not None and v != []]
    return f"{type(value).__name__}({','.join(f'{name}={canonical(v, annotations)}' for name, v in fields)})"


def _says_nothing(node: Any) -> bool:
    """Whether it is a docstring, or an import, whose names are resolved."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return is_text or isinstance(node, ast.Import | ast.ImportFrom)


def _imports_triton(node: ast.stmt) -> bool:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    return any(n.split(".")[0] == "triton" for n in [*names, getattr(node, "module", None) or ""])


def _file(module: str) -> Path:
    """Of a module, or of a package what it imports itself."""
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _defined(node: ast.stmt) -> set[str]:
    """Names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def _local_names(node: ast.stmt) -> set[str]:
    """Names that are bound inside a function, but by imports."""
    if not isinstance(node, ast.FunctionDef):
        return set()
    inside = [n for statement in node.body for n in ast.walk(statement)]
    arguments = {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    functions = {n.name for n in inside if isinstance(n, ast.FunctionDef)}
    return arguments | functions | {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _references(node: ast.AST, annotations: bool) -> Iterator[list[str]]:
    """The dotted names in a tree, as their parts; ``super().x`` is ``super``, ``x``."""
    if isinstance(node, ast.Attribute | ast.Name):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == "super" and parts:
            yield ["super", *parts]
            return
        if isinstance(inner, ast.Name):
            yield [inner.id, *parts]
            return
        yield from _references(inner, annotations)
        return
    for name, value in ast.iter_fields(node):
        if annotations or name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _references(child, annotations)
