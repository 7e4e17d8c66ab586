"""The texts that predictions are of."""

from mentalglm.config import InputConfig, PostsConfig, validate
from mentalglm.corpus import find_texts
from mentalglm.errors import InputError
from mentalglm.evaluation.predictions import Predictions


def read_posts(config: PostsConfig | None, predictions: Predictions) -> dict[str, str] | None:
    """Post id -> text, of those posts that are found with the text that was scored. None where `config` is None and the
    predictions do not hold their texts.

    Raises: InputError where the predictions do not tell their input and `config` does not either, or it cannot be read.
    """
    table = predictions.table
    if config is None:
        if "text" not in table.column_names:
            return None
        texts = zip(table["post_id"].cast("string").to_pylist(), table["text"].cast("string").to_pylist(), strict=True)
        return {post_id: text for post_id, text in texts if post_id is not None and text is not None}
    if "text_hash" not in table.column_names:
        raise InputError("predictions: have no column text_hash to know their texts by; give a run, or leave posts out")
    hashes = zip(
        table["post_id"].cast("string").to_pylist(), table["text_hash"].cast("string").to_pylist(), strict=True
    )
    return find_texts(input_of(config, predictions), dict(hashes))


def input_of(config: PostsConfig, predictions: Predictions) -> InputConfig:
    """Where to read: as `config` says, and where it says nothing, as the run's manifest does.

    Raises: InputError where neither says.
    """
    told = predictions.provenance.get("input") or {}
    given = config.model_dump(exclude_none=True)
    kept = ("uri", "format", "id_column", "text_column") if config.uri is None else ("id_column", "text_column")
    merged = {name: told[name] for name in kept if name in told} | given
    if "uri" not in merged:
        raise InputError(f"posts.uri: {predictions.provenance['uri']} does not tell its input; name it there")
    return validate(InputConfig, merged, "posts")
