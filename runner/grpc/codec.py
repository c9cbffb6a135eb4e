"""Generated messages to bytes and back.

The messages are the classes that betterproto generated. Its own codec takes a third of a millisecond for one answer,
because it changes the process's warning filters for every field, and it accepts messages that are cut off or have
values of another type. Here google.protobuf, which is C and strict, reads and writes the bytes by the descriptors of
the same `.proto`, and a plan made once for each class copies the values. Tests compare it with both libraries over the
whole `.proto`.

Messages of health and reflection belong to google.protobuf, and stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any, TypeVar

from attrs import frozen
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as GoogleMessage
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "operato.runner.v1"
POOL = DescriptorPool()
"""The descriptors that were made from the `.proto`."""
for _file in FileDescriptorSet.FromString(files("protocol.rpc").joinpath("executor.binpb").read_bytes()).file:
    POOL.Add(_file)

M = TypeVar("M")


class MalformedError(ValueError):
    """The bytes are not a message of this type; the text gives the reason."""


@frozen
class _Field:
    """One field of a message."""

    name: str
    group: str | None
    """Its oneof."""
    repeated: bool
    message: Any | None
    """The class of a message."""
    absent: Any
    """The default that marks a value as not set."""
    read: Callable[[Any], Any] | None
    """Makes the value of a message or enum from google's."""


@frozen
class _Plan:
    """How messages of one class are written and read."""

    google: Any
    """The class with the same fields."""
    fields: dict[str, _Field]
    groups: dict[str, str]
    """Name of a field to its oneof."""
    defaults: dict[str, Any]
    """Values of absent fields outside of a oneof; messages stay unset."""
    repeated: tuple[str, ...]


def make(cls: type[M], **values: Any) -> M:
    """Return a message with these values, as its constructor does, at a tenth of the cost.

    Raises TypeError for a name that is not a field.
    """
    plan = _plan(cls)
    if not values.keys() <= plan.fields.keys():
        raise TypeError(f"{cls.__name__} has no field {min(values.keys() - plan.fields.keys())!r}")
    message = cls.__new__(cls)
    groups: dict[str, str | None] = {}
    if plan.groups:
        groups = dict.fromkeys(plan.groups.values())
        groups.update({plan.groups[name]: name for name in values if name in plan.groups})
    _values_of(message).update(values, _serialized_on_wire=True, _unknown_fields=b"", _group_current=groups)
    return message


def encode(message: Any) -> bytes:
    """Return the bytes of a message."""
    google = message
    if not isinstance(message, GoogleMessage):
        plan = _plan(type(message))
        google = plan.google()
        _write(plan, _values_of(message), google)
    data: bytes = google.SerializeToString()
    return data


def decode(cls: type[M], data: bytes) -> M:
    """Return the message in `data`; unknown fields are ignored, and of a repeated scalar field the last value counts.

    Raises MalformedError.
    """
    google: Any = cls if issubclass(cls, GoogleMessage) else _plan(cls).google
    try:
        found = google.FromString(data)
    except DecodeError as problem:
        raise MalformedError(str(problem)) from None
    message: M = found if google is cls else _read(cls, found)
    return message


def _values_of(message: Any) -> dict[str, Any]:
    """Return the dictionary of a message, without betterproto's attribute lookup."""
    values: dict[str, Any] = object.__getattribute__(message, "__dict__")
    return values


_plans: dict[Any, _Plan] = {}


def _plan(cls: Any) -> _Plan:
    plan = _plans.get(cls)
    if plan is None:
        plan = _plans[cls] = _make_plan(cls)
    return plan


def _make_plan(cls: Any) -> _Plan:
    meta = cls._betterproto  # the description in the generated class
    fields = {}
    for name, about in meta.meta_by_field_name.items():
        message, read = None, None
        if about.proto_type == "message":
            message = meta.cls_by_field[name]
            read = _reader(message)
        elif about.proto_type == "enum":
            read = meta.cls_by_field[name].try_value
        group = None if about.optional else about.group
        absent = cls.__dataclass_fields__[name].default
        fields[name] = _Field(name, group, meta.default_gen[name] is list, message, absent, read)
    return _Plan(
        GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{cls.__name__}")),
        fields,
        {field.name: field.group for field in fields.values() if field.group is not None},
        {
            name: None if meta.meta_by_field_name[name].optional else meta.default_gen[name]()
            for name, field in fields.items()
            if field.group is None and field.message is None and not field.repeated
        },
        tuple(name for name, field in fields.items() if field.repeated),
    )


def _reader(cls: Any) -> Callable[[Any], Any]:
    return lambda google: _read(cls, google)


def _write(plan: _Plan, values: dict[str, Any], google: Any) -> None:
    """Copy the values of a message."""
    groups = values["_group_current"]
    for name, field in plan.fields.items():
        value = values.get(name, field.absent)
        if value is field.absent or value is None or (field.group is not None and groups[field.group] != name):
            continue
        if field.message is not None:
            inner, target = _plan(field.message), getattr(google, name)
            for item in value if field.repeated else [value]:
                found = _values_of(item)
                place = target.add() if field.repeated else target
                _write(inner, found, place)
                # Reading an attribute that was never set makes an empty message, which still counts as not set.
                if found["_serialized_on_wire"] or field.group is not None:
                    place.SetInParent()
        elif field.repeated:
            getattr(google, name).extend(value)
        else:
            setattr(google, name, value)


def _read(cls: Any, google: Any) -> Any:
    """Return the message with the values of google's."""
    plan = _plan(cls)
    values = dict(plan.defaults)
    for name in plan.repeated:
        values[name] = []
    for descriptor, value in google.ListFields():
        field = plan.fields[descriptor.name]
        if field.repeated:
            values[field.name] = list(value) if field.read is None else [field.read(item) for item in value]
        else:
            values[field.name] = value if field.read is None else field.read(value)
    return make(cls, **values)
