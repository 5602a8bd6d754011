"""Many images on many machines: planned as shards, computed by the workers of a Ray cluster. Needs the extra `ray`."""

from dipdefense.scale.cluster import Cluster
from dipdefense.scale.purify import purify_shards
from dipdefense.scale.shards import Failure

__all__ = ["Cluster", "Failure", "purify_shards"]
