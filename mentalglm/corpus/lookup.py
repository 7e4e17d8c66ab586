"""The texts of some posts, for what reads a run's output and needs the posts beside it."""

from collections.abc import Mapping

from mentalglm.config import InputConfig
from mentalglm.corpus.plan import plan_corpus
from mentalglm.corpus.reader import ShardReader, unreadable_now
from mentalglm.corpus.rows import CorruptShardError

_SHARD_ROWS = 8192


def find_texts(config: InputConfig, text_hashes: Mapping[str, str]) -> dict[str, str]:
    """Post id -> normalised text, of the posts in `text_hashes` (post id -> `text_hash`) that are there with that very
    text. Reads the input until all are found.

    Raises: InputError for an input that cannot be read.
    """
    found: dict[str, str] = {}
    config = config.model_copy(update={"duplicate_ids": "keep_all", "keep_columns": [], "sample_rows": None})
    try:
        plan = plan_corpus(config, _SHARD_ROWS)
        reader = ShardReader(config, plan)
        for shard in plan.shards():
            try:
                posts = reader.read(shard)
            except CorruptShardError:  # its posts have no predictions to explain
                continue
            for post_id, text, text_hash in zip(posts.ids, posts.texts, posts.text_hashes, strict=True):
                if post_id is not None and text_hashes.get(post_id) == text_hash:
                    found[post_id] = text
            if len(found) == len(text_hashes):
                break
    except OSError as error:
        raise unreadable_now(config.uri, error) from None
    return found
