"""The shards of a run, fixed before anything is computed: their sizes and names are the same at every start."""

import json
import math
from dataclasses import dataclass
from typing import Any

from dipdefense.arguments import check_integer
from dipdefense.digest import configuration_hash
from dipdefense.distributed.storage import Storage

__all__ = ["Plan"]

FILE = "plan.json"


@dataclass(frozen=True)
class Plan:
    """A run of `images` images in shards of `shard_size`, the last one perhaps smaller.

    Raises:
        ValueError: a number below 1.
    """

    images: int
    shard_size: int
    suffix: str = "parquet"

    def __post_init__(self) -> None:
        for name in ("images", "shard_size"):
            check_integer(name, getattr(self, name), 1)

    def __len__(self) -> int:
        """Shards."""
        return math.ceil(self.images / self.shard_size)

    def span(self, shard: int) -> tuple[int, int]:
        """The images of a shard, as start and stop."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.images)

    def images_of(self, shard: int) -> int:
        """How many images a shard has."""
        start, stop = self.span(shard)
        return stop - start

    def name(self, shard: int) -> str:
        """The file of a shard; names sort as the shards do."""
        digits = max(5, len(str(len(self))))
        return f"part-{shard:0{digits}}-of-{len(self):0{digits}}.{self.suffix}"

    def missing(self, folder: Storage) -> list[int]:
        """The shards that a folder does not hold."""
        found = folder.sizes()
        return [shard for shard in range(len(self)) if self.name(shard) not in found]

    def settle(self, folder: Storage, settings: dict[str, Any]) -> str:
        """Write the run's settings, plain values, to its folder, or check that they are those found there.

        Returns:
            Their hash, which marks the shards: two runs that begin in one empty folder at once both pass this check.

        Raises:
            ValueError: the folder belongs to another run (the message says what differs), or holds other files.
        """
        settings = json.loads(json.dumps(settings | {"images": self.images, "shard_size": self.shard_size}))
        mark = configuration_hash(settings)
        found = folder.sizes()
        shards = found.keys() - {FILE}
        if not shards:  # nothing was made yet, so the settings may still change
            folder.write(FILE, json.dumps(settings, indent=2).encode() + b"\n")
            return mark
        if FILE not in found:
            raise ValueError(f"{folder.path}: OUTPUT must be empty, or the folder of this run, but holds {min(shards)}")
        before = json.loads(folder.read(FILE))
        other = [name for name in sorted(before.keys() | settings) if before.get(name) != settings.get(name)]
        if other:
            name = other[0]
            raise ValueError(
                f"{folder.path}: settings must be those of the run in this folder, but its {name} is "
                f"{before.get(name)!r}, got {settings.get(name)!r}: take another folder"
            )
        return mark
