"""What the cases of one table differ in, beside their model: the context length, or the batch."""

from dataclasses import dataclass

from benchbench.case import Case


@dataclass(frozen=True)
class Axis:
    field: str
    """Of a case."""
    symbol: str
    one: str
    many: str
    unit: str
    """What one more of it is."""

    def of(self, case: Case) -> int:
        return getattr(case, self.field)

    def at(self, case: Case, n: int) -> Case:
        """The same case elsewhere."""
        return case.replace(**{self.field: n})


LENGTH = Axis("seq_len", "N", "length", "lengths", "token")
BATCH = Axis("batch", "B", "batch", "batches", "sequence")
