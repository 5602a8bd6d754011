"""Short names of plain values, by what they are."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["configuration_hash"]


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """Sixteen hex digits that name a configuration of plain values, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]
