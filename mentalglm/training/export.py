"""What a stage has made, as it is scored: the files of its best checkpoint, with a model card."""

import shutil
import tempfile
from pathlib import Path

from mentalglm import storage
from mentalglm.engine.files import digest_of
from mentalglm.training.card import model_card
from mentalglm.training.checkpoint import OPTIMIZER, StoredCheckpoint, local_copy
from mentalglm.training.local_files import empty_folder
from mentalglm.training.models.language_model import DTYPES, copy_tokenizer
from mentalglm.training.stage import Stage, StageRecord


def export(stage: Stage, best: StoredCheckpoint) -> str:
    """Puts the adapter or classifier (or, with `method: full`, the model in the config's dtype) into the stage's
    folder. Returns its digest."""
    for file in list(storage.list_files(stage.product_uri)):  # of an attempt that died here
        storage.delete(storage.join(stage.product_uri, file.path))
    local = empty_folder(stage.uri, "export")
    with local_copy(best.uri, local) as folder, tempfile.TemporaryDirectory(prefix="export-", dir=local) as temporary:
        made = Path(temporary)
        if stage.config.method == "full":
            _write_rounded(folder, stage, made)
        else:
            for name in best.files.keys() - {OPTIMIZER}:
                shutil.copy(folder / name, made / name)
        for path in sorted(made.iterdir()):
            storage.put_file_if_absent(storage.join(stage.product_uri, path.name), path)
        return digest_of(made)


def write_card(stage: Stage, record: StageRecord) -> None:
    """Puts the model card beside what was exported."""
    storage.put(storage.join(stage.product_uri, "README.md"), model_card(stage, record).encode())


def _write_rounded(folder: Path, stage: Stage, target: Path) -> None:
    """The whole model in the config's dtype, as engines round it when they load the checkpoint."""
    from transformers import AutoModelForCausalLM

    dtype = DTYPES[stage.config.dtype]
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).save_pretrained(target)
    copy_tokenizer(folder, target)
