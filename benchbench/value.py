"""The base of every immutable record: frozen, strict about unknown keys, hashable by value."""

from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from benchbench.errors import BenchError, unknown

V = TypeVar("V", bound=BaseModel)


class Value(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """A frozen pydantic model; its subclasses say `frozen=True` too, for type checkers. An unknown key is an error."""

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed.

        Raises:
            BenchError: A field does not exist, or its new value is of the wrong type or range.
        """
        for key in changes:
            if key not in type(self).model_fields:
                raise unknown("field", key, type(self).model_fields)
        return validated(type(self), {**self.model_dump(), **changes}, where=type(self).__name__)


def validated(kind: type[V], data: dict[str, Any], where: str) -> V:
    """`kind` built from `data`; pydantic's report becomes one line that quotes the user's value."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise explained(error, kind, where) from None


def explained(error: ValidationError, kind: type[BaseModel], where: str) -> BenchError:
    """The first complaint of a validation report as `where: field = value: what is expected`."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        wrong = unknown("key", str(first["loc"][-1]), kind.model_fields)
        return BenchError(f"{where}: {wrong.message}", wrong.hint)
    if first["type"] == "missing":
        return BenchError(f"{where}: the key '{key}' is missing.", f"Keys: {', '.join(kind.model_fields)}.")
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "value_error":
        return BenchError(f"{where}: {reason}")
    return BenchError(f"{where}: {key} = {first['input']!r}: expected {reason}.")
