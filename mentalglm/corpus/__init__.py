"""Reading a corpus: files into shards, shards into posts."""

from mentalglm.corpus.lookup import find_texts
from mentalglm.corpus.plan import CorpusPlan, InputFile, Quarantined, Shard, check_unchanged, plan_corpus
from mentalglm.corpus.reader import Posts, ShardReader, unreadable_now
from mentalglm.corpus.rows import CorruptShardError
from mentalglm.corpus.text import NORMAL_FORM_VERSION, normalise, replace_surrogates, text_hash

__all__ = [
    "NORMAL_FORM_VERSION",
    "CorpusPlan",
    "CorruptShardError",
    "InputFile",
    "Posts",
    "Quarantined",
    "Shard",
    "ShardReader",
    "check_unchanged",
    "find_texts",
    "normalise",
    "plan_corpus",
    "replace_surrogates",
    "text_hash",
    "unreadable_now",
]
