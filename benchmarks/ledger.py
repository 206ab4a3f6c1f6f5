"""Rows that outlive a run: each is written as soon as it is measured, and not measured again by the next run.

Several benchmarks, or several processes each with a file of its own, may put their rows together.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from onnx_dfmpc.errors import RecipeError

SCHEMA = 1


class Keyed(Protocol):
    """A dataclass of plain values, one of them or several together its key."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> Hashable: ...


R = TypeVar("R", bound=Keyed)


@dataclass
class Ledger(Generic[R]):
    """Rows by key, in the order in which they were measured.

    ``path`` is where they are kept, if anywhere; ``others`` are files whose rows count, too, and are kept with
    the rest.
    """

    kind: type[R]
    path: Path | None = None
    others: Iterable[Path] = ()

    def __post_init__(self) -> None:
        self._rows: dict[Hashable, R] = {}
        own = [self.path] if self.path is not None and self.path.is_file() else []
        for path in (*own, *self.others):
            for row in self._read(path):
                self._rows.setdefault(row.key, row)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[R]:
        return iter(self._rows.values())

    def add(self, row: R) -> None:
        """Keep a row, in the file as well: a new one takes its place, so that none is ever half written."""
        self._rows[row.key] = row
        if self.path is None:
            return
        document = {"schema": SCHEMA, "rows": [_finite(asdict(one)) for one in self._rows.values()]}
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(json.dumps(document, indent=0, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, self.path)

    def _read(self, path: Path) -> Iterator[R]:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            names = {field.name for field in fields(self.kind)}
            rows = [row for row in document["rows"] if set(row) == names]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RecipeError(f"{path}: not the results of this benchmark: {error}") from error
        if len(rows) < len(document["rows"]):
            raise RecipeError(f"{path}: results of another benchmark, or of another version of this one")
        for row in rows:
            yield self.kind(**row)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
