"""An index in PostgreSQL with pgvector, on one server or spread over several."""

from costream.index.postgres.index import PostgresIndex, public_url
from costream.index.postgres.shards import create_shards, move_shard

__all__ = ["PostgresIndex", "create_shards", "move_shard", "public_url"]
