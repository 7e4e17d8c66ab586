"""What train jobs of the tests are made of: a model that is small and knows nothing, and records."""

import json
from pathlib import Path

from mentalglm.corpus.synthetic import generate_posts
from mentalglm.training.demo.model import untrained

CANARY = "金丝雀训练丁5"
"""In the text and in the explanation of every record."""


def write_model(folder: Path) -> Path:
    """One layer of 64, random weights, the demo model's tokenizer."""
    untrained(folder, num_layers=1, hidden_size=64)
    return folder


def write_records(path: Path, count: int) -> Path:
    """JSONL of two tasks in turns; ids r0, r1, ..."""
    rows = [
        {
            "id": f"r{number}",
            "task": task,
            "text": f"{CANARY}，{post.text}",
            "labels": list(post.labels[task]),
            "explanation": f"{post.explanations[task]}{CANARY}",
        }
        for number, post in enumerate(generate_posts(count, seed=3))
        for task in [("suicide_risk", "cognitive_distortion")[number % 2]]
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path
