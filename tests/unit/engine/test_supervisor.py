"""Engines that die, hang, dawdle and fail to start, by script, on a clock of their own."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentalglm.engine.chat import EncodedPrompt
from mentalglm.engine.protocol import Completion, Engine, Request
from mentalglm.engine.supervisor import EngineDiedError, SupervisedEngine
from mentalglm.errors import ConfigError, InterruptedRunError
from mentalglm.tasks import Prompt
from tests.virtual_time import VirtualLoop, run

Fault = Literal["crash", "hang", "slow"]
TIMEOUT_S = 60.0


@dataclass
class World:
    """What a script decides, and what was seen."""

    num_slots: int = 4
    faults: dict[str, Fault] = field(default_factory=dict)
    """Row -> what it does to every engine it is given to."""
    seconds: Callable[[str], float] = lambda _: 1.0
    kills: Sequence[float] = ()
    """When something else ends the engine of the time; s, from its start on."""
    failing_starts: frozenset[int] = frozenset()
    is_sick: bool = False
    """Whether engines die of anything that they are asked."""
    engines: "list[ScriptedEngine]" = field(default_factory=list)
    num_encoded: Counter[str] = field(default_factory=Counter)
    num_asked: Counter[str] = field(default_factory=Counter)
    num_ends: int = 0
    num_kills: int = 0
    framed: set[str] = field(default_factory=set)
    """Rows that were alone on an engine when something else ended it."""

    def start(self) -> "ScriptedEngine":
        if len(self.engines) in self.failing_starts:
            raise ConfigError("engine: no GPU is free; free one")
        assert all(engine.state == "gone" for engine in self.engines), "two engines at once"
        self.engines.append(ScriptedEngine(self))
        return self.engines[-1]

    def supervise(self, max_restarts: int = 10_000) -> SupervisedEngine:
        engine = SupervisedEngine(self.start, row_timeout_s=TIMEOUT_S, max_restarts=max_restarts)
        for at in self.kills:
            asyncio.get_running_loop().call_later(at, self.kill_from_outside)
        return engine

    def kill_from_outside(self) -> None:
        engine = self.engines[-1]
        if engine.state in ("well", "hung"):
            self.num_kills += 1
            if len(engine.running) == 1:
                self.framed |= engine.running.keys()
            engine.die()

    @property
    def most_at_once(self) -> int:
        return max(engine.most_at_once for engine in self.engines)


class ScriptedEngine:
    """A `BareEngine` that does as the world says."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.state: Literal["well", "hung", "dead", "gone"] = "well"
        self.running: dict[str, asyncio.Future[None]] = {}
        self.most_at_once = 0
        self.num_slots, self.num_queued = world.num_slots, 0
        self.description = {"engine": "scripted", "number": str(len(world.engines))}

    def encode(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt | None]:
        self.world.num_encoded.update(prompt.text for prompt in prompts)
        return [None if prompt.text == "long" else EncodedPrompt([1], ("flag",)) for prompt in prompts]

    async def is_well(self) -> bool:
        if self.world.is_sick:
            self.die()
        return self.state == "well"

    async def generate(self, request: Request, encoded: EncodedPrompt) -> Completion:
        if self.state in ("dead", "gone"):
            raise EngineDiedError
        row = request.prompt.text
        if row.startswith("refused"):  # by what stands before the engine
            return Completion(text="", finish_reason="error", flags=encoded.flags, error="ValueError")
        assert row not in self.running
        self.world.num_asked[row] += 1
        loop = asyncio.get_running_loop()
        self.running[row] = loop.create_future()
        self.most_at_once = max(self.most_at_once, len(self.running))
        assert len(self.running) <= self.num_slots
        event = loop.call_later(self.world.seconds(row), self._end_of, row)
        try:
            await self.running[row]
        except asyncio.CancelledError:
            if not row.startswith("stubborn"):
                raise
        finally:
            event.cancel()
            self.running.pop(row, None)
        if row == "defect":
            raise KeyError(row)
        return Completion(text=row, finish_reason="stop", flags=encoded.flags)

    def _end_of(self, row: str) -> None:
        if self.state != "well":
            return
        fault = self.world.faults.get(row)
        if fault == "crash":
            self.die()
        elif fault == "hang":
            self.state = "hung"
        elif fault is None and not self.running[row].done():
            self.running[row].set_result(None)

    def die(self) -> None:
        self.state = "dead"
        for future in self.running.values():
            if not future.done():
                future.set_exception(EngineDiedError())

    async def close(self) -> None:
        assert self.state == "well"
        self.state = "gone"

    async def kill(self) -> None:
        assert self.state != "gone"
        if self.state != "dead":
            self.die()
        self.world.num_ends += 1
        await asyncio.sleep(1)
        self.state = "gone"


def requests(rows: Sequence[str]) -> list[Request]:
    return [Request(task="suicide_risk", prompt=Prompt(system=None, before="", text=row, after="")) for row in rows]


async def answers(engine: Engine, rows: Sequence[str]) -> dict[str, str]:
    """row -> the error, or "ok"; each row once."""
    found: dict[int, Completion] = {}
    async for index, completion in engine.complete(requests(rows)):
        assert index not in found
        found[index] = completion
    assert found.keys() == set(range(len(rows)))
    for index, completion in found.items():
        assert completion.text == ("" if completion.finish_reason == "error" else rows[index])
        assert completion.flags == ("flag",)
    return {rows[index]: completion.error or "ok" for index, completion in found.items()}


def names(count: int, prefix: str = "r") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_without_a_fault_it_only_limits_what_runs_at_once() -> None:
    world = World(num_slots=4)

    async def main() -> None:
        engine = world.supervise()
        both = await asyncio.gather(answers(engine, names(10)), answers(engine, names(7, "s")))
        assert [set(found.values()) for found in both] == [{"ok"}, {"ok"}]
        assert asyncio.get_running_loop().time() == 5.0  # 17 rows, 4 at once
        assert engine.num_restarts == 0
        assert engine.description == {"engine": "scripted", "number": "0"}
        assert await answers(engine, []) == {}
        await engine.close()

    run(main())
    assert world.most_at_once == 4
    assert world.engines[0].state == "gone"


def test_a_prompt_that_does_not_fit_is_not_asked() -> None:
    async def main() -> None:
        engine = World().supervise()
        found = dict([item async for item in engine.complete(requests(["a", "long"]))])
        assert found[1] == Completion(text="", finish_reason="too_long")
        assert found[0].text == "a"

    run(main())


@pytest.mark.parametrize(("fault", "error"), [("crash", "engine_crash"), ("hang", "engine_hang")])
@pytest.mark.parametrize("num_slots", [1, 4, 320])
def test_a_poison_row_is_found_in_three_ends(fault: Fault, error: str, num_slots: int) -> None:
    world = World(num_slots=num_slots, faults={"r7": fault}, seconds=lambda row: 0.5 if row == "r7" else 1.0)

    async def main() -> None:
        engine = world.supervise()
        found = await answers(engine, names(500))
        assert found == dict.fromkeys(names(500), "ok") | {"r7": error}
        assert engine.num_restarts == world.num_ends <= 3
        await engine.close()

    run(main())
    assert set(world.num_encoded.values()) == {1}
    assert world.engines[-1].most_at_once == min(num_slots, 500 - num_slots)  # the gate is open again


def test_what_waits_for_a_slot_is_no_suspect_and_waits_out_the_search() -> None:
    world = World(num_slots=9, faults={"r0": "crash"}, seconds=lambda row: 1.0 if row == "r0" else 2.0)

    async def main() -> None:
        engine = world.supervise()
        done: list[str] = []
        async for index, _ in engine.complete(requests(names(30))):
            done.append(f"r{index}")
        assert set(done[:9]) == set(names(9))
        # Tried in groups of three, and the first group one by one.
        assert [each.most_at_once for each in world.engines] == [9, 3, 1, 9]

    run(main())


def test_rows_that_had_finished_stay_finished() -> None:
    world = World(num_slots=4, faults={"r3": "crash"}, seconds=lambda row: 1.0 + int(row[1:]))

    async def main() -> None:
        await answers(world.supervise(), names(4))

    run(main())
    assert world.num_asked == {"r0": 1, "r1": 1, "r2": 1, "r3": 2}


def test_an_engine_killed_from_outside_costs_no_row() -> None:
    world = World(num_slots=16, kills=[0.5])

    async def main() -> None:
        engine = world.supervise()
        assert set((await answers(engine, names(100))).values()) == {"ok"}
        assert engine.num_restarts == 1

    run(main())


def test_an_answer_that_comes_in_spite_of_its_cancelling_does_not_count() -> None:
    rows = ["r0", *names(8, "stubborn")]
    world = World(num_slots=9, faults={"r0": "hang"}, seconds=lambda row: 1.0 if row == "r0" else 2.0)

    async def main() -> None:
        assert await answers(world.supervise(), rows) == dict.fromkeys(rows, "ok") | {"r0": "engine_hang"}

    run(main())
    assert world.num_asked["stubborn0"] == 3
    assert world.num_asked["stubborn7"] == 2


def test_the_last_row_of_all_is_no_poison_for_being_alone() -> None:
    world = World(kills=[0.5])

    async def main() -> None:
        assert await answers(world.supervise(), ["r0"]) == {"r0": "ok"}

    run(main())


def test_an_engine_is_not_started_for_nobody() -> None:
    world = World(faults={"r0": "crash"})

    async def main() -> None:
        engine = world.supervise()
        assert await answers(engine, ["r0"]) == {"r0": "engine_crash"}
        await asyncio.sleep(100)
        assert (engine.num_restarts, len(world.engines)) == (1, 2)
        assert engine.description["number"] == "1"
        assert await answers(engine, ["r1"]) == {"r1": "ok"}
        assert engine.num_restarts == 2

    run(main())


def test_a_slow_row_among_others_is_given_up_alone() -> None:
    world = World(num_slots=4, faults={"r2": "slow"})

    async def main() -> None:
        engine = world.supervise()
        assert await answers(engine, names(400)) == dict.fromkeys(names(400), "ok") | {"r2": "timeout"}
        assert engine.num_restarts == 0
        assert world.engines[0].running == {}
        await engine.close()

    run(main())


def test_a_hang_blames_nobody_who_began_before_the_last_finished_row() -> None:
    """r0 to r2 began long before r3 finished; the engine hangs by chance right after."""
    world = World(num_slots=4, seconds=lambda row: 1.0 if row == "r3" else 5.0)

    async def main() -> None:
        engine = world.supervise()
        asyncio.get_running_loop().call_later(1.5, setattr, world.engines[0], "state", "hung")
        assert set((await answers(engine, names(12))).values()) == {"ok"}
        assert engine.num_restarts == 1

    run(main())


def test_rows_refused_before_the_engine_do_not_show_that_it_lives() -> None:
    world = World(num_slots=8, faults={"r0": "hang"}, seconds=lambda row: 1.0 if row == "r0" else 5.0)

    async def main() -> None:
        engine = world.supervise()
        call = asyncio.create_task(answers(engine, names(5)))
        for _ in range(7):
            await asyncio.sleep(10)
            assert await answers(engine, ["refused"]) == {"refused": "ValueError"}
        assert await call == dict.fromkeys(names(5), "ok") | {"r0": "engine_hang"}

    run(main())


def test_a_pause_without_rows_is_no_hang() -> None:
    world = World(seconds=lambda _: 0.9 * TIMEOUT_S)

    async def main() -> None:
        engine = world.supervise()
        for _ in range(3):
            assert set((await answers(engine, names(4))).values()) == {"ok"}
            await asyncio.sleep(2.5 * TIMEOUT_S)
        assert engine.num_restarts == 0

    run(main())


def test_restarts_that_find_a_guilty_row_are_not_counted_against_the_run() -> None:
    faults = {f"r{n}": "crash" for n in range(0, 24, 4)}
    world = World(num_slots=24, faults=faults)

    async def main() -> None:
        engine = world.supervise(4)
        results = await answers(engine, names(24))
        assert {name for name, answer in results.items() if answer == "engine_crash"} == set(faults)
        assert engine.num_restarts > 4
        await engine.close()

    run(main())


def test_an_engine_that_answers_nothing_ends_the_run_and_convicts_few_rows() -> None:
    world = World(num_slots=8, faults=dict.fromkeys(names(64), "crash"), is_sick=True)

    async def main() -> None:
        engine = world.supervise(6)
        with pytest.raises(InterruptedRunError, match=r"engine\.max_restarts = 6"):
            await answers(engine, names(64))
        assert 6 <= engine.num_restarts <= 9
        await engine.close()

    run(main())
    assert all(each.state == "gone" for each in world.engines)


def test_many_guilty_rows_side_by_side_are_all_found_by_an_engine_that_answers_others() -> None:
    """As a retry of rows that ended the engine asks them: nothing else is there to be answered."""
    world = World(num_slots=32, faults=dict.fromkeys(names(60), "crash"))

    async def main() -> None:
        engine = world.supervise(12)
        assert set((await answers(engine, names(60))).values()) == {"engine_crash"}
        assert set((await answers(engine, names(5, "s"))).values()) == {"ok"}
        await engine.close()

    run(main())


def test_an_engine_that_answers_nothing_but_trifles_ends_the_run_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mentalglm.engine.supervisor._MAX_CONVICTED_IN_A_ROW", 10)
    world = World(num_slots=8, faults=dict.fromkeys(names(64), "crash"))

    async def main() -> None:
        engine = world.supervise(6)
        with pytest.raises(InterruptedRunError, match=r"engine\.max_restarts = 6"):
            await answers(engine, names(64))
        await engine.close()

    run(main())


@pytest.mark.parametrize("max_restarts", [0, 1])
def test_too_many_restarts_end_the_run_in_one_line(max_restarts: int) -> None:
    world = World(num_slots=4, faults={"r0": "crash", "r1": "hang"})

    async def main() -> None:
        engine = world.supervise(max_restarts)
        results = await asyncio.gather(
            answers(engine, names(8)), answers(engine, names(5, "s")), return_exceptions=True
        )
        for error in results:
            assert isinstance(error, InterruptedRunError)
            assert f"engine.max_restarts = {max_restarts}: " in str(error)
            assert "\n" not in str(error)
        with pytest.raises(InterruptedRunError):
            await answers(engine, ["later"])
        assert engine.num_restarts == max_restarts
        await engine.close()

    run(main())
    assert all(each.state == "gone" for each in world.engines)


def test_an_engine_that_cannot_be_started_again_ends_the_run() -> None:
    world = World(faults={"r0": "crash"}, failing_starts=frozenset({1}))

    async def main() -> None:
        engine = world.supervise()
        with pytest.raises(InterruptedRunError, match=r"could not be started again \(engine: no GPU is free"):
            await answers(engine, names(8))
        with pytest.raises(InterruptedRunError):
            await answers(engine, ["later"])
        await engine.close()

    run(main())
    assert len(world.engines) == 1


def test_an_engine_that_cannot_be_started_at_all_says_so() -> None:
    with pytest.raises(ConfigError, match="no GPU is free"):
        SupervisedEngine(World(failing_starts=frozenset({0})).start, row_timeout_s=1, max_restarts=1)


def test_a_defect_reaches_the_caller_alone() -> None:
    async def main() -> None:
        engine = World(num_slots=4).supervise()
        other = asyncio.create_task(answers(engine, names(12)))
        with pytest.raises(KeyError):
            await answers(engine, ["a", "defect", "b"])
        assert set((await other).values()) == {"ok"}

    run(main())


def test_rows_that_nobody_reads_any_more_make_room() -> None:
    world = World(num_slots=4)

    async def main() -> None:
        engine = world.supervise()
        async with aclosing(engine.complete(requests(names(100)))) as items:
            async for _ in items:
                break
        assert asyncio.get_running_loop().time() == 1.0
        await answers(engine, names(8, "s"))
        assert asyncio.get_running_loop().time() == 3.0

    run(main())


def test_a_call_may_go_away_in_the_middle_of_a_search() -> None:
    world = World(num_slots=16, faults={"r5": "crash"}, seconds=lambda row: 0.5 if row == "r5" else 1.0)

    async def main() -> None:
        engine = world.supervise()
        leaver = asyncio.create_task(answers(engine, names(8)))
        other = asyncio.create_task(answers(engine, names(40, "s")))
        await asyncio.sleep(2)  # the second engine has its first group, r0 to r3
        assert len(world.engines) == 2
        leaver.cancel()
        assert set((await other).values()) == {"ok"}
        assert engine.num_restarts == 1
        assert world.num_asked["r5"] == 1

    run(main())


def test_a_row_that_was_taken_back_is_not_avenged_on_the_next() -> None:
    """r1 leaves the engine hanging and its call goes away; s0 is next to be tried, alone, on that engine."""
    world = World(num_slots=49, faults={"r1": "hang"}, seconds=lambda _: 0, kills=[0.0])

    async def leave(engine: Engine) -> None:  # the second group of seven is then s0 alone
        async with aclosing(engine.complete(requests(names(13)))) as items:
            async for _ in items:
                break

    async def main() -> None:
        engine = world.supervise()
        _, found = await asyncio.gather(leave(engine), answers(engine, names(40, "s")))
        assert set(found.values()) == {"ok"}
        await engine.close()

    run(main())


def test_closing_in_the_middle_ends_the_calls() -> None:
    world = World(num_slots=4)

    async def main() -> None:
        engine = world.supervise()
        call = asyncio.create_task(answers(engine, names(100)))
        await asyncio.sleep(1.5)
        await engine.close()
        with pytest.raises(InterruptedRunError):
            await call

    run(main())
    assert world.engines[0].state == "gone"


async def test_other_work_goes_on_while_an_engine_starts() -> None:
    """In real time and with real threads, unlike all else here."""
    world = World(num_slots=4, kills=[0.01], seconds=lambda _: 0.05)
    threads: list[str] = []
    beats = 0

    def start() -> ScriptedEngine:
        threads.append(threading.current_thread().name)
        if len(threads) > 1:
            beats_before = beats
            for _ in range(1000):
                if beats > beats_before + 5:
                    break
                threading.Event().wait(0.01)
            else:
                raise AssertionError("the event loop stands still")
        return world.start()

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.001)
            beats += 1

    engine = SupervisedEngine(start, row_timeout_s=TIMEOUT_S, max_restarts=3)
    asyncio.get_running_loop().call_later(0.01, world.kill_from_outside)
    heart = asyncio.create_task(beat())
    assert set((await answers(engine, names(8))).values()) == {"ok"}
    heart.cancel()
    assert len(set(threads)) == 2
    await engine.close()


ROWS = names(60)


@settings(max_examples=400, deadline=None)
@given(
    faults=st.dictionaries(st.sampled_from(ROWS), st.sampled_from(["crash", "hang", "slow"]), max_size=6),
    kills=st.lists(st.floats(0, 400), max_size=4),
    num_slots=st.integers(1, 70),
    seconds=st.lists(st.integers(0, 20), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    leavers=st.dictionaries(st.integers(0, 4), st.integers(1, 10), max_size=2),
)
def test_whatever_fails_every_row_is_answered_once_and_the_guilty_alone_are_given_up(
    faults: dict[str, Fault],
    kills: list[float],
    num_slots: int,
    seconds: list[int],
    cuts: list[int],
    leavers: dict[int, int],
) -> None:
    """`cuts`: where the rows are divided into calls. `leavers`: call -> after how many answers its reader goes."""
    world = World(num_slots, faults, lambda row: seconds[int(row[1:]) % len(seconds)], kills)
    edges = [0, *sorted(cuts), len(ROWS)]
    calls = [ROWS[start:end] for start, end in pairwise(edges)]

    async def call(number: int, engine: Engine) -> dict[str, str]:
        if number not in leavers:
            return await answers(engine, calls[number])
        async with aclosing(engine.complete(requests(calls[number]))) as items:
            num_read = 0
            async for _ in items:
                num_read += 1
                if num_read == leavers[number]:
                    break
        return {}

    async def main() -> None:
        engine = world.supervise()
        found: dict[str, str] = {}
        for answered in await asyncio.gather(*(call(number, engine) for number in range(len(calls)))):
            found |= answered
        assert found.keys() == {row for number, rows in enumerate(calls) if number not in leavers for row in rows}
        for row, error in found.items():
            fault = faults.get(row)
            if fault is None:
                assert error == "ok" or row in world.framed
            elif row not in world.framed:
                expected = {"crash": {"engine_crash"}, "hang": {"engine_hang"}, "slow": {"timeout", "engine_hang"}}
                assert error in expected[fault]
            else:
                assert error != "ok"
        assert world.num_ends <= 3 * len(faults) + world.num_kills
        assert engine.num_restarts <= world.num_ends
        # And all is as it was: full concurrency, nothing left over. (The engine may have been killed while idle.)
        await asyncio.sleep(max(kills, default=0))
        world.faults = {}
        for count in (1, 80):
            for each in world.engines:
                each.most_at_once = 0
            assert set((await answers(engine, names(count, "z"))).values()) == {"ok"}
        assert world.most_at_once == num_slots
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        assert loop.clock.num_steps < 20_000  # no busy waiting
        await engine.close()
        assert all(each.state == "gone" for each in world.engines)

    run(main())
