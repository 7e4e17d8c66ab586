"""From a post to the prompt that asks about it. Training, scoring and evaluation all render here."""

from dataclasses import dataclass

from mentalglm.tasks.task import Task

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

    @property
    def user(self) -> str:
        """The whole user turn."""
        return self.before + self.text + self.after


def render_prompt(task: Task, text: str) -> Prompt:
    """The prompt of `task` for a post. `text` goes in literally; only quotation marks that could close the
    template's own become single ones."""
    before, _, after = task.prompt.partition(_PLACEHOLDER)
    inner = _INNER_QUOTES.get(before[-1:])
    return Prompt(task.system, before, text.translate(inner) if inner else text, after)
