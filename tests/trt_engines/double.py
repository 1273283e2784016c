"""A recording double of TensorRT, generated from the type stubs of one release.

What the stubs do not have raises AttributeError; a wrong number of arguments or a wrong type raises TypeError; a call
nobody has given an answer to raises AssertionError. So does an answer of a type the real function does not return.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Answer = Callable[..., Any]

SIMPLE = {"str": str, "int": int, "float": (int, float), "_bool": (bool, int), "tuple": tuple, "list": list}


@dataclass(frozen=True)
class Call:
    """One call, or one property set (`set NAME`)."""

    owner: str
    name: str
    arguments: tuple[Any, ...]


@dataclass
class _Signature:
    parameters: inspect.Signature
    returns: ast.expr | None


class Double:
    """One release's module.

    Args:
        stub: the stub package's `__init__.pyi`.
        answers: what methods and properties return, by `Class.name`; called with the object and the arguments. A
            property that is set is answered by `Class.name=`.

    Attributes:
        module: what stands for the imported module.
        calls: everything that was called, in order.
    """

    def __init__(self, stub: Path, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.calls: list[Call] = []
        self._classes: dict[str, type] = {}
        self.module: Any = _Module()
        for node in _parsed(stub):
            if isinstance(node, ast.ClassDef) and node.name != "TensorRT":
                self._classes[node.name] = self._make_class(node, node.name)
                setattr(self.module, node.name, self._classes[node.name])
            elif isinstance(node, ast.FunctionDef):
                setattr(self.module, node.name, self._function("", node.name, [_signature(node, bound=False)]))

    def make(self, name: str, **state: Any) -> Any:
        """An object of a class, as a factory of the real module would return it. `state`: for the answers to read."""
        made = object.__new__(self._classes[name])
        object.__setattr__(made, "state", SimpleNamespace(**state))
        return made

    def names(self, *owners: str) -> list[str]:
        """Names of the calls on objects of these classes, in order."""
        return [call.name for call in self.calls if call.owner in owners]

    def _make_class(self, node: ast.ClassDef, path: str) -> type:
        bases = tuple(self._classes[_text(base)] for base in node.bases if _text(base) in self._classes)
        members: dict[str, Any] = {"__setattr__": _guarded, "_stub": path}
        methods: dict[str, list[_Signature]] = {}
        values = []
        for one in node.body:
            if isinstance(one, ast.ClassDef):
                self._classes[f"{path}.{one.name}"] = members[one.name] = self._make_class(one, f"{path}.{one.name}")
            elif isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                if _text(one.annotation).startswith("typing.ClassVar"):
                    values.append((one.target.id, _text(one.annotation)))
                else:
                    members[one.target.id] = self._property(path, one.target.id, one.annotation, one.annotation)
            elif isinstance(one, ast.FunctionDef):
                self._add_function(members, methods, path, one)
        for name, signatures in methods.items():
            members[name] = self._function(path, name, signatures)
        made = type(node.name, bases, members)
        for place, (name, annotation) in enumerate(values):
            kind = annotation.removeprefix("typing.ClassVar[").removesuffix("]")
            if kind == path:  # a member of this enumeration
                value = object.__new__(made)
                object.__setattr__(value, "state", SimpleNamespace(name=name, value=place))
                setattr(made, name, value)
            elif kind in self._classes:  # another enumeration's, exported here too
                setattr(made, name, getattr(self._classes[kind], name))
        return made

    def _add_function(
        self, members: dict[str, Any], methods: dict[str, list[_Signature]], path: str, node: ast.FunctionDef
    ) -> None:
        decorators = [_text(one) for one in node.decorator_list]
        if "property" in decorators:
            members[node.name] = self._property(path, node.name, node.returns, None)
        elif f"{node.name}.setter" in decorators:
            read: property = members[node.name]
            written = self._property(path, node.name, None, node.args.args[1].annotation)
            members[node.name] = property(read.fget, written.fset)
        elif node.name == "__init__" or not node.name.startswith("__"):
            methods.setdefault(node.name, []).append(_signature(node, bound="staticmethod" not in decorators))
        elif node.name == "__iter__":
            members[node.name] = _values
        elif node.name == "__buffer__":
            members["__bytes__"] = _content

    def _function(self, owner: str, name: str, signatures: Sequence[_Signature]) -> Answer:
        label = f"{owner}.{name}" if owner else name

        def call(*arguments: Any, **named: Any) -> Any:
            inside = arguments[1:] if owner else arguments
            found, problems = None, []
            for signature in signatures:
                try:
                    bound = signature.parameters.bind(*inside, **named)
                except TypeError as error:
                    problems.append(str(error))
                    continue
                wrong = [
                    f"{key}={value!r} is not {_text(annotation)}"
                    for key, value in bound.arguments.items()
                    if (annotation := signature.parameters.parameters[key].annotation) is not inspect.Parameter.empty
                    and not self._accepts(annotation, value)
                ]
                if not wrong:
                    found = signature
                    break
                problems += wrong
            if found is None:
                raise TypeError(f"{label}: {'; '.join(problems)}")
            if owner:
                self.calls.append(Call(owner, name, (*inside, *named.values())))
            return None if name == "__init__" else self._answer(label, found.returns, *arguments, **named)

        return call

    def _property(self, owner: str, name: str, read: ast.expr | None, written: ast.expr | None) -> property:
        def get(this: Any) -> Any:
            return self._answer(f"{owner}.{name}", read, this)

        def put(this: Any, value: Any) -> None:
            if written is not None and not self._accepts(written, value):
                raise TypeError(f"{owner}.{name} = {value!r} is not {_text(written)}")
            self.calls.append(Call(owner, f"set {name}", (value,)))
            self._answer(f"{owner}.{name}=", None, this, value)

        return property(get, put if written is not None else None)

    def _answer(self, label: str, returns: ast.expr | None, *arguments: Any, **named: Any) -> Any:
        enum = getattr(arguments[0], "state", None) if arguments else None
        if label.rpartition(".")[2] in ("name", "value") and label not in self.answers and enum is not None:
            return getattr(enum, label.rpartition(".")[2])  # of an enumeration's member
        if label not in self.answers:
            raise AssertionError(f"{label} was called and the test has no answer to it")
        value = self.answers[label](*arguments, **named)
        if returns is not None and not self._accepts(returns, value):
            raise AssertionError(f"the test answers {label} with {value!r}, which is not {_text(returns)}")
        return value

    def _accepts(self, annotation: ast.expr, value: Any) -> bool:
        text = _text(annotation)
        if isinstance(annotation, ast.BinOp):
            return self._accepts(annotation.left, value) or self._accepts(annotation.right, value)
        if text in self._classes:
            return isinstance(value, self._classes[text])
        if text in SIMPLE:
            return isinstance(value, SIMPLE[text])
        if text == "None":
            return value is None
        if text == "typing.SupportsInt":
            return hasattr(value, "__int__") and not isinstance(value, str | bytes)
        if text == "_DimsLike":
            return isinstance(value, tuple | list | self._classes["Dims"])
        if text == "typing_extensions.Buffer":
            return _is_buffer(value)
        if isinstance(annotation, ast.Subscript) and _text(annotation.value) in ("list", "tuple"):
            kind = SIMPLE[_text(annotation.value)]
            return isinstance(value, kind) and all(self._accepts(annotation.slice, one) for one in value)
        return text == "typing.Any"


class _Module:
    """Attributes of a module; a missing one raises AttributeError as it would there."""

    __version__ = "double"


def _values(self: Any) -> Iterator[Any]:
    """Of `Dims`, as the test made it with `values`."""
    return iter(self.state.values)


def _content(self: Any) -> bytes:
    """Of `IHostMemory`, as the test made it."""
    return bytes(self.state.content)


def _guarded(self: Any, name: str, value: Any) -> None:
    """Classes of the real module have no dictionary; classes that tests derive from them have one."""
    if "_stub" in type(self).__dict__ and not isinstance(getattr(type(self), name, None), property):
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
    object.__setattr__(self, name, value)


@cache
def _parsed(stub: Path) -> list[ast.stmt]:
    """A release's stub has 13,000 nodes, and every test makes a double of its own."""
    return ast.parse(stub.read_text(encoding="utf-8")).body


@cache
def _text(node: ast.AST) -> str:
    """Source of a node: asked for at every argument of every call."""
    return ast.unparse(node)


@cache
def _signature(node: ast.FunctionDef, *, bound: bool) -> _Signature:
    arguments = node.args.args[1:] if bound else node.args.args
    required = len(arguments) - len(node.args.defaults)
    parameters = [
        inspect.Parameter(
            one.arg,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if place < required else None,
            annotation=inspect.Parameter.empty if one.annotation is None else one.annotation,
        )
        for place, one in enumerate(arguments)
    ]
    return _Signature(inspect.Signature(parameters), node.returns)


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value).release()
    except TypeError:
        return False
    return True
