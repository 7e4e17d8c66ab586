"""What a model that was not trained on a task must be told: its labels, and the form of an answer. Words are ours."""

from mentalglm.tasks.render import render_answer
from mentalglm.tasks.task import Task

_WORDS = {
    "zh": {
        "one": "请从下列标签中选出一个最符合帖子的标签：{names}。",
        "many": "请从下列标签中选出所有符合帖子的标签：{names}。",
        "form": "回答的格式：{form}",
        "forms": "请用下列回答之一作答：{forms}",
        "or": "或者用下列回答之一作答：{forms}",
        "none": "没有符合的标签时回答：{form}",
        "label": "<标签>",
        "labels": "<标签>{separator}<标签>",
        "explanation": "<理由>",
        "joint": "、",
    },
    "en": {
        "one": "Choose the one label that fits the post best: {names}.",
        "many": "Choose all labels that fit the post: {names}.",
        "form": "Form of the answer: {form}",
        "forms": "Answer with one of these: {forms}",
        "or": "Or answer with one of these: {forms}",
        "none": "If no label fits, answer: {form}",
        "label": "<label>",
        "labels": "<label>{separator}<label>",
        "explanation": "<reason>",
        "joint": "; ",
    },
}


def render_instruction(task: Task) -> str:
    """The instruction, with an empty line after it."""
    words = _WORDS[task.language]
    has_one = task.kind in ("binary", "multiclass")
    reason = task.explanation.replace("{explanation}", words["explanation"])
    if task.examples and not any(example.explanation for example in task.examples):
        reason = ""  # else the form would be one thing and the answers that follow it another
    own = [label.answer for slug in task.answerable if (label := task.by_slug[slug]).answer is not None]
    names = [task.name_of(slug) for slug in task.answerable if task.by_slug[slug].answer is None]
    lines = []
    if names:
        assert task.answer is not None  # checked on loading
        lines.append(words["one" if has_one else "many"].format(names=words["joint"].join(names)))
        slot = words["label"] if has_one else words["labels"].format(separator=task.separator)
        lines.append(words["form"].format(form=task.answer.replace("{labels}", slot) + reason))
    if own:
        lines.append(
            words["or" if names else "forms"].format(forms=words["joint"].join(f"{answer}{reason}" for answer in own))
        )
    if task.none_allowed:
        lines.append(words["none"].format(form=render_answer(task, [], None) + reason))
    return "\n".join(lines) + "\n\n"
