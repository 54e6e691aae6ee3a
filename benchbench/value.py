"""The base of every immutable record: frozen, strict about unknown keys, hashable by value."""

from typing import Any, Self

from pydantic import BaseModel

from benchbench.errors import unknown
from benchbench.reading import read


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
        return read(type(self), {**self.model_dump(by_alias=True), **changes}, type(self).__name__)
