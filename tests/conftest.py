"""What every test may use."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A machine that is busy is no defect.
settings.register_profile("mentalglm", deadline=None)
settings.load_profile("mentalglm")

# Before ray, vllm or transformers are imported anywhere.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
os.environ.pop("RAY_ADDRESS", None)

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The folder of development data beside the checkout; the test is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return SHARED_DATA
