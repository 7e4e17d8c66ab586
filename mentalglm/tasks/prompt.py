"""From a post to the prompt that asks about it. Training, scoring and evaluation all render here."""

from dataclasses import dataclass

from mentalglm.tasks.instruction import render_instruction
from mentalglm.tasks.render import render_answer
from mentalglm.tasks.task import Example, Task

_PLACEHOLDER = "{text}"
# A post inside quotation marks must not be able to close them: inner marks become single ones.
_INNER_QUOTES = {"“": str.maketrans("“”", "‘’"), '"': str.maketrans('"', "'")}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt, in parts: an engine may shorten `text`, which comes from outside, and nothing else."""

    system: str | None
    before: str
    text: str
    after: str
    preamble: str = ""
    """What stands first, the same for all posts: the task's instruction and examples. Examples come from outside, too.
    """

    @property
    def user(self) -> str:
        """The whole user turn."""
        return self.preamble + self.before + self.text + self.after


def render_prompt(task: Task, text: str) -> Prompt:
    """The prompt of `task` for a post. `text` goes in literally; only quotation marks that could close the
    template's own become single ones. Of the task's examples that with the same text is left out."""
    before, _, after = task.prompt.partition(_PLACEHOLDER)
    return Prompt(task.system, before, _quoted(before, text), after, _preamble(task, text))


def is_example(task: Task, text: str) -> bool:
    """Whether the post is one of the task's examples, and asked about without it."""
    return bool(task.examples) and text in _texts(task)


def _preamble(task: Task, text: str) -> str:
    if is_example(task, text):
        return _render_preamble(task, text)
    if task.digest not in _PREAMBLES:
        _PREAMBLES[task.digest] = _render_preamble(task, None)
    return _PREAMBLES[task.digest]


def _render_preamble(task: Task, left_out: str | None) -> str:
    instruction = render_instruction(task) if task.names_labels else ""
    return instruction + "".join(_answered(task, each) for each in task.examples if each.text != left_out)


def _answered(task: Task, example: Example) -> str:
    before, _, after = task.prompt.partition(_PLACEHOLDER)
    answer = render_answer(task, example.labels, example.explanation)
    return f"{before}{_quoted(before, example.text)}{after}\n{answer}\n\n"


def _quoted(before: str, text: str) -> str:
    inner = _INNER_QUOTES.get(before[-1:])
    return text.translate(inner) if inner else text


def _texts(task: Task) -> frozenset[str]:
    if task.digest not in _TEXTS:
        _TEXTS[task.digest] = frozenset(example.text for example in task.examples)
    return _TEXTS[task.digest]


# Every prompt of a run begins with the same.
_PREAMBLES: dict[str, str] = {}
_TEXTS: dict[str, frozenset[str]] = {}
