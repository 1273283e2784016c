"""Options in groups: a dataclass per group gives a command's parameters and one panel of its help page."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, get_args, get_origin, get_type_hints


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let typer see the fields of a command's dataclass parameters as options of the command itself.

    The fields are annotated as typer expects (`Annotated[int, typer.Option(...)]`). Their help stands in a panel
    titled by the first line of the dataclass's docstring. Parameters of other types stay as they are.

    Raises:
        TypeError: two fields of a command share a name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if (group := groups.get(parameter.name)) is not None:
            parameters += _parameters(group)
        else:
            annotation = hints[parameter.name]
            parameters.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))
    if len(names := {parameter.name for parameter in parameters}) != len(parameters):
        raise TypeError(f"{command.__name__}: two options share one of the names {sorted(names)}")

    @functools.wraps(command)
    def run(**values: Any) -> None:
        arguments = {
            name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        command(**arguments, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def plain(*groups: Any) -> dict[str, Any]:
    """The fields of option groups in one dictionary, with names of choices as plain strings."""
    return {
        field.name: value.value if isinstance(value := getattr(group, field.name), StrEnum) else value
        for group in groups
        for field in dataclasses.fields(group)
    }


def _parameters(group: Any) -> list[inspect.Parameter]:
    """A keyword parameter per field, its option put into the group's panel."""
    panel = (group.__doc__ or "").partition("\n")[0].removesuffix(".")
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for field in dataclasses.fields(group):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        annotation = _with_panel(hints[field.name], panel)
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return parameters


def _with_panel(annotation: Any, panel: str) -> Any:
    """The annotation with a copy of its option that names the panel: one definition serves several commands."""
    if get_origin(annotation) is not Annotated:
        raise TypeError(f"panel {panel}: {annotation} has no typer.Option")
    kind, option = get_args(annotation)
    copied = copy.copy(option)
    copied.rich_help_panel = panel
    return Annotated[kind, copied]
