"""The tables job: evaluations in, the paper's tables with theirs beside them out."""

from pathlib import Path

from mentalglm import storage
from mentalglm.config.tables import TablesConfig
from mentalglm.errors import ConfigError
from mentalglm.evaluation.paper.measured import FilledTable, fill
from mentalglm.evaluation.paper.published import load_table
from mentalglm.evaluation.paper.render import render


def write_tables(config: TablesConfig, *, dry_run: bool = False) -> list[FilledTable]:
    """Fills every table of the config and, but for `dry_run`, writes it in all forms.

    Raises: ConfigError, InputError; then nothing is written.
    """
    storage.configure(config.s3)
    stems = [Path(name).stem for name in config.tables]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ConfigError(f"tables: two of them would be written as {stem}; give each file its own name")
    filled = [fill(name, load_table(name), how) for name, how in config.tables.items()]
    files = {file: content for each in filled for file, content in render(each).items()}
    if not dry_run:
        for file, content in files.items():
            storage.put(storage.join(config.output.uri, file), content)
    return filled
