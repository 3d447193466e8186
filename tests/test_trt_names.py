"""Every name of TensorRT that the product uses exists in TensorRT 10, TensorRT 11 and TensorRT for RTX, and takes what it gets.

None of the first two can be imported without NVIDIA's libraries, which are on no package index. So the names are read from
the source and looked up: with their arguments in the stubs of TensorRT 10, among the strings of TensorRT 11's real bindings,
and in the real module of TensorRT for RTX.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

import explorer

SOURCES = {name: Path(explorer.__file__).parent / "latency" / f"{name}.py" for name in ("trt", "trt_build")}

#: What holds objects of TensorRT in these files, and of which class. `trt` is TensorRT itself in both.
HOLDERS = {
    "trt": {
        "self.runtime": "Runtime",
        "self.engine": "ICudaEngine",
        "self.context": "IExecutionContext",
        "runner.engine": "ICudaEngine",
        "runner.context": "IExecutionContext",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "config": "IRuntimeConfig",
        "compiled": "IRuntimeCache",
        "inspector": "EngineInspector",
    },
    "trt_build": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "config": "IBuilderConfig",
        "cache": "ITimingCache",
        "plan": "IHostMemory",
        "profile": "IOptimizationProfile",
        "tensor": "ITensor",
        "error": "ParserError",
        "severity": "ILogger.Severity",
    },
}
#: What holds no object of TensorRT, though what is asked of it has a name of TensorRT's too.
OTHERS = {
    "trt": {"self", "self.buffers['logits'].float().cpu()", "runner", "built", "deployed.arch", "torch", "np"},
    "trt_build": {"thread"},
}
#: Only in TensorRT for RTX; the product asks which library it has before it uses them.
RTX_ONLY = {
    ("", "ComputeCapability"),
    ("", "CudaGraphStrategy"),
    ("", "DynamicShapesKernelSpecializationStrategy"),
    ("BuilderFlag", "REQUIRE_USER_ALLOCATION"),
    ("CudaGraphStrategy", "DISABLED"),
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("IExecutionContext", "is_stream_capturable"),
    ("IRuntimeCache", "deserialize"),
    ("IRuntimeCache", "serialize"),
    ("IRuntimeConfig", "create_runtime_cache"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("IRuntimeConfig", "set_runtime_cache"),
}
#: Functions that run where TensorRT for RTX is, or that ask by `hasattr`; and the module itself, which asks.
RTX_FUNCTIONS = {"_configure_rtx", "_rtx_context", "_is_capturable", "compute_capabilities", ""}
#: Asked for by `hasattr` alone, to tell TensorRT 10 from the others, which lack it.
TENSORRT_10_ONLY = {("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")}
#: How many arguments a starred one stands for.
STARRED = {"set_shape": 3}
#: Public methods of ours on subclasses of TensorRT's classes: all others override.
OWN_METHODS = {"reason", "stop"}


@dataclass(frozen=True)
class Use:
    """`name` of the class `of` (empty: of the module) on a line. `given`: for a call, its positions and keywords."""

    file: str
    line: int
    of: str
    name: str
    is_set: bool = False
    given: tuple[int, tuple[str, ...]] | None = None

    def __str__(self) -> str:
        call = "" if self.given is None else f" with {self.given[0]} arguments"
        return f"{self.file}.py:{self.line}: {'.'.join(filter(None, ('trt', self.of, self.name)))}{call}"

    @property
    def key(self) -> tuple[str, str]:
        return self.of, self.name


@dataclass
class Reader(ast.NodeVisitor):
    """Collects uses of TensorRT in a file, and accesses that look like one to what HOLDERS does not know."""

    file: str
    holders: dict[str, str]
    others: set[str]
    uses: list[Use] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def class_of(self, node: ast.expr) -> str | None:
        """The class of TensorRT that an expression is (`trt.BuilderFlag`) or is an object of; empty for the module."""
        text = ast.unparse(node)
        if text == "trt":
            return ""
        if text in self.holders:
            return self.holders[text]
        if isinstance(node, ast.Attribute) and self.class_of(node.value) == "":
            return node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = self.class_of(node.func.value)
            if owner == "":
                return node.func.attr
            return None if owner is None else returned(owner, node.func.attr)
        return None

    def visit_Call(self, node: ast.Call) -> None:
        match node:
            case ast.Call(func=ast.Name(id="hasattr"), args=[asked, ast.Constant(value=str(name))]):
                if (owner := self.class_of(asked)) is not None:
                    self.uses.append(Use(self.file, node.lineno, owner, name))
            case ast.Call(func=ast.Attribute(value=value, attr=name)) if (owner := self.class_of(value)) is not None:
                spread = STARRED.get(name, 0) if any(isinstance(each, ast.Starred) for each in node.args) else 0
                positions = sum(not isinstance(each, ast.Starred) for each in node.args) + spread
                if name == "__init__":  # called on the class, so with the object
                    positions -= 1
                given = (positions, tuple(str(each.arg) for each in node.keywords))
                of, called = (name, "__init__") if owner == "" else (owner, name)
                self.uses.append(Use(self.file, node.lineno, of, called, given=given))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = self.class_of(node.value)
        if owner is not None and not node.attr.startswith("__"):
            self.uses.append(Use(self.file, node.lineno, owner, node.attr, is_set=isinstance(node.ctx, ast.Store)))
        elif owner is None and node.attr in names_of_rtx() and ast.unparse(node.value) not in self.others:
            self.unknown.append(f"{self.file}.py:{node.lineno}: {ast.unparse(node)}")
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """A method that overrides one of TensorRT's takes what TensorRT passes."""
        for base in node.bases:
            owner = self.class_of(base)
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef)] if owner else []
            for method in methods:
                if not method.name.startswith("_") and method.name not in OWN_METHODS:
                    taken = (len(method.args.args) - 1, ())
                    self.uses.append(Use(self.file, method.lineno, str(owner), method.name, given=taken))
        self.generic_visit(node)


def read(source: str, file: str, holders: dict[str, str], others: set[str]) -> Reader:
    reader = Reader(file, holders, others)
    reader.visit(ast.parse(source))
    return reader


@cache
def read_product() -> tuple[list[Use], list[str]]:
    readers = [
        read(path.read_text(encoding="utf-8"), file, HOLDERS[file], OTHERS[file]) for file, path in SOURCES.items()
    ]
    return [use for reader in readers for use in reader.uses], [each for reader in readers for each in reader.unknown]


# -- TensorRT for RTX -------------------------------------------------------------------------------------------------


@cache
def rtx() -> Any:
    return pytest.importorskip(
        "tensorrt_rtx_bindings", reason="pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs"
    )


def class_in_rtx(dotted: str) -> Any:
    found = rtx()
    for part in filter(None, dotted.split(".")):
        found = getattr(found, part, None)
    return found


@cache
def names_of_rtx() -> frozenset[str]:
    """All names of its module and of its classes, but those of Python's own lists, which it has too."""
    content = {name: each for name, each in vars(rtx()).items() if not inspect.ismodule(each)}
    classes = [each for each in content.values() if inspect.isclass(each)]
    names = {*content, *(name for each in classes for name in dir(each))} - {*dir(list)}
    return frozenset(name for name in names if not name.startswith("_"))


def signatures_in_rtx(of: str, name: str) -> list[ast.arguments]:
    """From the first lines of a docstring, one for each overload: `set_flag(self: a.B, flag: a.C = <C.D: 0>) -> None`."""
    text = getattr(class_in_rtx(of), name).__doc__ or ""
    found = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> .*$", text, re.MULTILINE)
    return [signature_of(re.sub(r"<[^>]*>", "None", each).replace("::", ".")) for each in found]


def lacks_in_rtx(use: Use) -> str | None:
    owner = class_in_rtx(use.of)
    if owner is None or not hasattr(owner, use.name):
        return f"{use}: is not in TensorRT for RTX {rtx().__version__}"
    if use.is_set and getattr(owner, use.name).fset is None:
        return f"{use}: cannot be set in TensorRT for RTX {rtx().__version__}"
    if use.given is None:
        return None
    signatures = signatures_in_rtx(use.of, use.name)
    if signatures and not any(fits(each, use.given) for each in signatures):
        return f"{use}: takes other arguments in TensorRT for RTX {rtx().__version__}"
    return None


# -- TensorRT 10 ------------------------------------------------------------------------------------------------------


@cache
def stubs() -> dict[str, dict[str, list[ast.stmt]]]:
    """Members of every class by name, nested ones as `ILogger.Severity`, and of the module as ''."""
    try:
        file = distribution("tensorrt-stubs").locate_file("tensorrt_bindings/tensorrt.pyi")
    except PackageNotFoundError:
        pytest.skip("pip install --no-deps tensorrt-stubs")
    found: dict[str, dict[str, list[ast.stmt]]] = {"": {}}
    for statement in statements_of(Path(str(file)).read_text(encoding="utf-8")):
        collect(statement, "", found)
    return found


def statements_of(text: str) -> Iterator[ast.stmt]:
    """Statements one by one: of those that do not parse, classes lose the members that do not, all others are left out."""
    for block in re.split(r"^(?=[^\s)\]}])", text, flags=re.MULTILINE):
        try:
            yield from ast.parse(block).body
        except SyntaxError:
            head, _, body = block.partition("\n")
            if head.startswith("class "):
                shift = re.sub(r"^    ", "", body, flags=re.MULTILINE)
                yield ast.ClassDef(head[6:].split(":")[0].split("(")[0], [], [], list(statements_of(shift)), [])


def collect(statement: ast.stmt, owner: str, found: dict[str, dict[str, list[ast.stmt]]]) -> None:
    match statement:
        case ast.ClassDef(name=name, body=body):
            inner = f"{owner}.{name}".lstrip(".")
            found[owner].setdefault(name, []).append(statement)
            found[inner] = {}
            for each in body:
                collect(each, inner, found)
        case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            found[owner].setdefault(name, []).append(statement)


def returned(of: str, name: str) -> str | None:
    """The class of what a method gives, as the stubs of TensorRT 10 say."""
    for member in stubs().get(of, {}).get(name, []):
        if isinstance(member, ast.FunctionDef) and member.returns is not None:
            return ast.unparse(member.returns)
    return None


def lacks_in_stubs(use: Use) -> str | None:
    if use.of not in stubs() or use.name not in stubs()[use.of]:
        return f"{use}: is not in TensorRT 10"
    members = stubs()[use.of][use.name]
    functions = [each for each in members if isinstance(each, ast.FunctionDef)]
    if (
        use.is_set
        and functions
        and not any("setter" in ast.unparse(each) for one in functions for each in one.decorator_list)
    ):
        return f"{use}: cannot be set in TensorRT 10"  # fmt: skip
    if use.given is not None and functions and not any(fits(each.args, use.given) for each in functions):
        return f"{use}: takes other arguments in TensorRT 10"
    return None


# -- TensorRT 11 ------------------------------------------------------------------------------------------------------


@cache
def bindings_11() -> bytes:
    try:
        found = distribution("tensorrt_cu13_bindings")
    except PackageNotFoundError:
        pytest.skip("pip install tensorrt_cu13_bindings")
    assert found.version.split(".")[0] == "11"
    return Path(str(found.locate_file("tensorrt_bindings/tensorrt.so"))).read_bytes()


def lacks_in_bindings_11(use: Use) -> str | None:
    """Names are strings of their own there, though linkers let one be the end of another (`desc` of `..._desc`)."""
    if use.name.startswith("__") or use.name.encode() + b"\0" in bindings_11():
        return None
    return f"{use}: is not in TensorRT 11"


# -- arguments --------------------------------------------------------------------------------------------------------


def signature_of(text: str) -> ast.arguments:
    (function,) = ast.parse(f"def f({text}): ...").body
    assert isinstance(function, ast.FunctionDef)
    return function.args


def fits(signature: ast.arguments, given: tuple[int, tuple[str, ...]]) -> bool:
    """Whether a method, whose first parameter is the object, can be given so many positions and these keywords."""
    if signature.vararg is not None:
        return True
    names = [each.arg for each in (*signature.posonlyargs, *signature.args)]
    if names[:1] == ["self"]:
        names = names[1:]
    positions, keywords = given
    needed = names[: len(names) - len(signature.defaults)]
    filled = {*names[:positions], *keywords}
    allowed = {*names[positions:], *(each.arg for each in signature.kwonlyargs)}
    return positions <= len(names) and set(keywords) <= allowed and set(needed) <= filled


# -- tests ------------------------------------------------------------------------------------------------------------


def everywhere() -> list[Use]:
    return [use for use in read_product()[0] if use.key not in RTX_ONLY | TENSORRT_10_ONLY]


def test_source_is_read() -> None:
    """The tests below would pass on an empty list."""
    keys = {use.key for use in read_product()[0]}
    assert len(keys) > 60
    assert {
        ("", "OnnxParser"),
        ("Builder", "__init__"),
        ("Builder", "build_serialized_network"),
        ("BuilderFlag", "TF32"),
        ("IBuilderConfig", "builder_optimization_level"),
        ("ITimingCache", "serialize"),
        ("IOptimizationProfile", "set_shape"),
        ("ParserError", "node_operator"),
        ("IProgressMonitor", "step_complete"),
        ("ILogger", "log"),
        ("IProfiler", "report_layer_time"),
        ("IExecutionContext", "execute_async_v3"),
        ("ICudaEngine", "device_memory_size_v2"),
        ("EngineInspector", "get_engine_information"),
    } <= keys


def test_everything_that_looks_like_tensorrt_is_known() -> None:
    assert read_product()[1] == [], "say in HOLDERS which class of TensorRT it is of, or in OTHERS that it is of none"


def test_names_are_in_tensorrt_10() -> None:
    assert [lack for use in everywhere() if (lack := lacks_in_stubs(use))] == []


def test_names_are_in_tensorrt_11() -> None:
    assert [lack for use in everywhere() if (lack := lacks_in_bindings_11(use))] == []


def test_names_are_in_tensorrt_for_rtx() -> None:
    uses = [use for use in read_product()[0] if use.key not in TENSORRT_10_ONLY]
    assert [lack for use in uses if (lack := lacks_in_rtx(use))] == []


def test_lists_of_exceptions_hold_nothing_else() -> None:
    used = {use.key for use in read_product()[0]}
    assert used >= RTX_ONLY | TENSORRT_10_ONLY
    assert [key for key in RTX_ONLY if key[1] in stubs().get(key[0], {})] == []
    for of, name in TENSORRT_10_ONLY:
        assert name in stubs()[of]
        assert not hasattr(class_in_rtx(of), name)
        assert name.encode() + b"\0" not in bindings_11()


@pytest.mark.parametrize("file", SOURCES)
def test_names_of_rtx_alone_are_used_for_rtx_alone(file: str) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(SOURCES[file].read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    for use in read_product()[0]:
        if use.file == file and use.key in RTX_ONLY:
            around = [each.name for each in functions if each.lineno <= use.line <= (each.end_lineno or 0)]
            assert (around or [""])[-1] in RTX_FUNCTIONS, f"{use} in {around}"


@pytest.mark.parametrize("file", OTHERS)
def test_names_of_ours_are_in_the_source(file: str) -> None:
    reader = read(SOURCES[file].read_text(encoding="utf-8"), file, HOLDERS[file], set())
    assert {each.partition(": ")[2].rpartition(".")[0] for each in reader.unknown} == OTHERS[file]


@pytest.mark.parametrize("holder", [f"{file}:{name}" for file, names in HOLDERS.items() for name in names])
def test_holders_are_in_the_source_and_their_classes_in_tensorrt(holder: str) -> None:
    file, _, name = holder.partition(":")
    nodes = ast.walk(ast.parse(SOURCES[file].read_text(encoding="utf-8")))
    assert any(isinstance(node, ast.expr | ast.arg) and ast.unparse(node).partition(":")[0] == name for node in nodes)
    assert class_in_rtx(HOLDERS[file][name]) is not None


@pytest.mark.parametrize(
    ("snippet", "lacking"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", {"TensorRT 11", "TensorRT for RTX"}),
        ("config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)", {"TensorRT 11", "TensorRT for RTX"}),
        ("builder.platform_has_fast_fp16", {"TensorRT 11", "TensorRT for RTX"}),
        ("builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))",
         {"TensorRT 11", "TensorRT for RTX"}),
        ("builder.max_batch_size = 1", {"TensorRT 10", "TensorRT for RTX"}),
        ("builder.build_engine(network, config)", {"TensorRT 10", "TensorRT 11", "TensorRT for RTX"}),
        ("builder.build_serialized_network(network)", {"TensorRT 10", "TensorRT for RTX"}),
        ("config.set_timing_cache(cache, ignore=False)", {"TensorRT 10", "TensorRT for RTX"}),
        ("config.set_timing_cache(cache)", {"TensorRT 10", "TensorRT for RTX"}),
        ("config.create_timing_cache(b'').content()", {"TensorRT 10", "TensorRT 11", "TensorRT for RTX"}),
        ("trt.OnnxParser(network)", {"TensorRT 10", "TensorRT for RTX"}),
        ("network.num_inputs = 2", {"TensorRT 10", "TensorRT for RTX"}),
        ("class Log(trt.ILogger):\n    def log(self, message): ...", {"TensorRT 10", "TensorRT for RTX"}),
        ("config.num_compute_capabilities = 1", {"TensorRT 10", "TensorRT 11"}),
        ("config.set_flag(trt.BuilderFlag.TF32)", set()),
    ],
)  # fmt: skip
def test_use_of_what_a_library_lacks_is_found(snippet: str, lacking: set[str]) -> None:
    uses = read(snippet, "snippet", HOLDERS["trt_build"], set()).uses
    assert uses
    told = [look(use) for use in uses for look in (lacks_in_stubs, lacks_in_bindings_11, lacks_in_rtx)]
    found = {re.split(r" (?:is not|cannot be set|takes other arguments) in ", f" {each}")[-1] for each in told if each}
    assert {each.removesuffix(f" {rtx().__version__}") for each in found} == lacking


@pytest.mark.parametrize("snippet", ["made.build_serialized_network(network)", "self.thing.num_io_tensors"])
def test_use_of_an_unknown_object_is_found(snippet: str) -> None:
    assert read(snippet, "snippet", HOLDERS["trt_build"], set()).unknown == [
        f"snippet.py:1: {snippet.partition('(')[0]}"
    ]
