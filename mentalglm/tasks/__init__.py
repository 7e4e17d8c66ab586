"""Tasks as data: label sets, prompts, answers, and reading a model's answers. Pure Python, nothing heavy."""

from mentalglm.tasks.answer import (
    PARSER_VERSION,
    ParsedAnswer,
    answer_heads,
    candidate_answers,
    find_marker,
    head_pattern,
    label_rows,
    parse_answer,
    parse_head,
    parse_row,
    render_answer,
    with_thought_opened,
)
from mentalglm.tasks.gold import read_gold
from mentalglm.tasks.load import builtin_tasks, load_task
from mentalglm.tasks.mask import LABEL_MASK, mask_labels
from mentalglm.tasks.prompt import Prompt, is_example, render_prompt
from mentalglm.tasks.task import NO_LABEL, Example, Label, Task

__all__ = [
    "LABEL_MASK",
    "NO_LABEL",
    "PARSER_VERSION",
    "Example",
    "Label",
    "ParsedAnswer",
    "Prompt",
    "Task",
    "answer_heads",
    "builtin_tasks",
    "candidate_answers",
    "find_marker",
    "head_pattern",
    "is_example",
    "label_rows",
    "load_task",
    "mask_labels",
    "parse_answer",
    "parse_head",
    "parse_row",
    "read_gold",
    "render_answer",
    "render_prompt",
    "with_thought_opened",
]
