"""What is kept on a machine's disk for a while, where it is found again after a kill: copies of models are large."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path


def empty_folder(stage_uri: str, owner: str) -> Path:
    """A folder on this machine for an owner of which a stage has one at a time ("worker-0"), without what an earlier
    one that was killed has left in it. In TMPDIR."""
    stage = hashlib.sha256(stage_uri.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"mentalglm-training-{os.getuid()}" / stage / owner
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    folder.parent.parent.chmod(0o700)
    return folder
