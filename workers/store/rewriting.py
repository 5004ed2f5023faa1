"""A compaction's new map segments, and a restore point with their names in the places of the old ones."""

from __future__ import annotations

from collections.abc import Mapping

from workers.models import RestorePoint
from workers.store import moves
from workers.store.maps import Maps, MapsWriter, Since


class Rewriter:
    """New segments for old ones; `renamed` remembers each, an unchanged one under its own name."""

    def __init__(
        self,
        maps: Maps,
        tables: dict[int, moves.Table],
        packs: set[int],
        files_: set[int],
        renamed: dict[str, str],
    ) -> None:
        self._maps = maps
        self._tables = tables
        self._packs = packs
        self._files = files_
        self._renamed = renamed

    def concerns(self, name: str) -> bool:
        if name in self._renamed:
            return self._renamed[name] != name
        if self._maps.parse(name).file in self._files or self._packs.intersection(self._maps.packs(name)):
            return True
        self._renamed[name] = name
        return False

    def one(self, name: str, writer: MapsWriter) -> None:
        old = self._maps.load_many([name])[0]
        new = moves.moved(old, self._tables)
        stays = new is old and self._maps.parse(name).file not in self._files
        self._renamed[name] = name if stays else str(writer.append(new, self._since(name)))

    def _since(self, name: str) -> Since | None:
        """Where it differs from the one it was made from: that was moved in the same way, so the list stays true."""
        since = self._maps.since(name)
        if since is None:
            return None
        parent = str(since.parent)
        return since._replace(parent=self._maps.parse(self._renamed.get(parent, parent)))


def with_names(point: RestorePoint, renamed: Mapping[str, str]) -> RestorePoint:
    disks = tuple(
        disk.model_copy(update={"segments": tuple(renamed.get(name, name) for name in disk.segments)})
        for disk in point.disks
    )
    return point.model_copy(update={"disks": disks})
