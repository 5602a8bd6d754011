"""Hashes of plain values, of source code, of modules, and of functions and objects with their settings."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["configuration_hash", "describe", "fingerprint", "source_hash"]

Plain = None | bool | int | float | complex | str | bytes


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """Sixteen hex digits that name a configuration of plain values, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def source_hash(*packages: str) -> str:
    """Sixteen hex digits that name the code and the learned starts of packages: they change with any line of code."""
    digest = hashlib.sha256()
    for package in packages:
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            files = (path for suffix in ("py", "safetensors") for path in Path(folder).rglob(f"*.{suffix}"))
            for path in sorted(files):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{package} {path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def fingerprint(net: nn.Module) -> str:
    """Sixteen hex digits that name a module's structure, code, parameters and buffers.

    Buffers outside the state dict count, too. Attributes, closures and hooks do not; `eval.classifier_probe`
    compares the module's answers for those.
    """
    digest = hashlib.sha256(_text(net).encode())
    for kind in sorted({type(module) for module in net.modules()}, key=_name):
        digest.update(json.dumps(_class_contents(kind)).encode())
    for _, tensor in (*net.named_parameters(), *net.named_buffers()):
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def describe(value: Any, *beside: Any) -> str:
    """The name of a function or an object, and sixteen hex digits of its code and settings, in one line.

    A function is identified by its bytecode, its defaults, its closure, and the plain values and functions of its own
    module that it reads; an object by its class and its attributes; code written in C by its `repr` alone.

    Args:
        value: a string is taken as it is.
        beside: further values that the digits depend on.
    """
    if isinstance(value, str) and not beside:
        return value
    return f"{_title(value)} {configuration_hash({'': _contents((value, *beside), {})})}"


def _title(value: Any) -> str:
    if isinstance(value, functools.partial):
        return _title(value.func) + "".join(_text(given) for given in (value.args, value.keywords) if given)
    if isinstance(value, nn.Module):
        return _name(type(value))
    if isinstance(value, type | FunctionType | BuiltinFunctionType | MethodType):
        return _name(value)
    text = _text(value)
    return _name(type(value)) if "{" in text else text  # the order of a set differs from process to process


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _text(value: Any) -> str:
    """`repr` without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _contents(value: Any, seen: dict[int, Any]) -> Any:
    """A value as JSON; `seen` holds the values met before, by identity, so that each is written once."""
    if isinstance(value, Plain):
        return repr(value)
    inside = functools.partial(_contents, seen=seen)
    match value:  # equal immutable values may or may not be one object
        case tuple():
            return [inside(one) for one in value]
        case frozenset():
            return sorted(json.dumps(inside(one)) for one in value)
        case CodeType():
            return [value.co_code.hex(), inside(value.co_names), inside(value.co_consts)]
    if id(value) in seen:
        return list(seen).index(id(value))
    seen[id(value)] = value
    match value:
        case Tensor():
            return [str(value.dtype), inside(tuple(value.shape)), hashlib.sha256(_bytes(value)).hexdigest()]
        case np.ndarray():
            return [str(value.dtype), inside(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
        case nn.Module():
            return fingerprint(value)
        case Mapping():
            return sorted(([inside(key), inside(held)] for key, held in value.items()), key=json.dumps)
        case list() | set():
            return inside((tuple if isinstance(value, list) else frozenset)(value))
        case functools.partial():
            return inside((value.func, value.args, tuple(sorted(value.keywords.items()))))
        case MethodType():
            return inside((value.__func__, value.__self__))
        case FunctionType():
            kept = (value.__code__, value.__defaults__, tuple((value.__kwdefaults__ or {}).items()), _read(value))
            return [_name(value), inside(kept)]
        case type():
            return _class_contents(value)
    attributes = _attributes(value)
    return [_class_contents(type(value)), inside(attributes) if attributes else _text(value)]


def _read(function: FunctionType) -> tuple[tuple[str, Any], ...]:
    """What a function reads besides its arguments: its closure, and plain values and functions of its module."""
    closure = zip(function.__code__.co_freevars, map(_cell, function.__closure__ or ()), strict=True)
    held = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    return *closure, *(
        (name, value)
        for name, value in sorted(held.items())
        if isinstance(value, Plain) or (isinstance(value, FunctionType) and value.__module__ == function.__module__)
    )


def _cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # its name has no value yet
        return None


def _names(code: CodeType) -> set[str]:
    """The names that a code object, and those within it, look up."""
    return set(code.co_names).union(*(_names(one) for one in code.co_consts if isinstance(one, CodeType)))


def _class_contents(kind: type) -> Any:
    """The bytecode and plain attributes of a class and its bases; for classes of torch the name alone.

    The version of torch is recorded elsewhere, and other libraries replace methods of `nn.Module` at import.
    """
    contents = []
    for one in kind.__mro__[:-1]:
        if one.__module__.partition(".")[0] == "torch":
            contents.append([_name(one)])
            continue
        codes = {name: value.__code__ for name, value in vars(one).items() if isinstance(value, FunctionType)}
        values = {name: value for name, value in vars(one).items() if name[:2] != "__" and isinstance(value, Plain)}
        contents.append([_name(one), _contents(tuple((codes | values).items()), {})])
    return contents


def _attributes(value: Any) -> dict[str, Any]:
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return {**getattr(value, "__dict__", {}), **{field.name: getattr(value, field.name) for field in fields}}
