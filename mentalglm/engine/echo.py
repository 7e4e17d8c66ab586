"""An engine without a model: every answer is derived from the prompt's text, so that all the rest can be tested."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence

from mentalglm.config import EchoEngineConfig
from mentalglm.engine.chat import ChatEncoder
from mentalglm.engine.protocol import Completion, Engine, FollowUp, Request
from mentalglm.tasks import Task, find_marker, render_answer


class EchoEngine(Engine):
    """Answers in the task's own template; which labels, a hash of the post and the adapter's name decides."""

    def __init__(self, config: EchoEngineConfig, tasks: Sequence[Task], encoder: ChatEncoder | None = None) -> None:
        """`encoder`: prompts are encoded with it, for the time that it takes."""
        self._delay_s = config.delay_s
        self._encoder = encoder
        self._tasks = {task.name: task for task in tasks}

    @property
    def description(self) -> dict[str, str]:
        """What answers, for the manifest."""
        return {"engine": "echo"}

    async def complete(
        self, requests: Sequence[Request], follow_up: FollowUp | None = None
    ) -> AsyncIterator[tuple[int, Completion]]:
        """See `Engine.complete`. With a delay, all requests of a call take it at once."""
        num_tokens = [len(request.prompt.user) for request in requests]
        if self._encoder is not None:
            encoded = await asyncio.to_thread(self._encoder.encode, [request.prompt for request in requests])
            num_tokens = [len(prompt.token_ids) if prompt else 0 for prompt in encoded]
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        for index, request in enumerate(requests):
            completion = self._answer(request, num_tokens[index])
            while follow_up and (following := follow_up(index, completion)):
                completion = self._answer(following, num_tokens[index])
            yield index, completion
            if index % 256 == 255:
                await asyncio.sleep(0)  # other shards get their turn

    async def close(self) -> None:
        """Nothing to free."""

    def _answer(self, request: Request, num_prompt_tokens: int) -> Completion:
        text = request.prompt.text
        asked = text if request.adapter is None else f"{request.adapter} {text}"
        digest = hashlib.blake2b(asked.encode(), digest_size=8).digest()
        task = self._tasks[request.task]
        answerable = task.answerable
        label = answerable[digest[0] % len(answerable)]
        if request.candidates:
            return Completion(
                text="",
                finish_reason="stop",
                num_prompt_tokens=num_prompt_tokens,
                num_output_tokens=1,
                candidate_probabilities=_probabilities(asked, request.candidates, render_answer(task, [label], None)),
            )
        answer = render_answer(task, [label], f"echo {digest.hex()}")
        marker = find_marker(request.markers, answer) if request.head_only else None
        answer = answer[: marker[1]] if marker else answer
        return Completion(
            text=answer,
            finish_reason="stop",
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=len(answer) - (len(request.head.text) if request.head else 0),
            is_head=marker is not None,
        )


def _probabilities(asked: str, candidates: Sequence[Sequence[str]], answer: str) -> tuple[float, ...]:
    """A hash of the text and of each candidate, normalised; that which is the answer is the most likely."""
    weights = [
        256 * len(candidates) * (whole == answer)
        + hashlib.blake2b(f"{whole} {asked}".encode(), digest_size=1).digest()[0]
        for whole, *_ in candidates
    ]
    return tuple(weight / sum(weights) for weight in weights)
