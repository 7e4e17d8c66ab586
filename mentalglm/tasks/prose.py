"""Reading labels out of the head of an answer that is written as text: what it asserts, what it denies.

The steps, in order: make one list of items out of Markdown; find the names of the closed vocabulary, longest first,
and put one private-use character in the place of each; drop quotations of the post; cut into sentences, slots
(`name: value`) and clauses; decide for every name whether its clause asserts it, denies it or leaves it open.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise

from mentalglm.tasks import grammar
from mentalglm.tasks.grammar import FIRST_TOKEN, HAN, NAME, SEPARATOR
from mentalglm.tasks.task import Slug, Task
from mentalglm.tasks.text import fold
from mentalglm.tasks.vocabulary import Token, Vocabulary

MAX_HEAD = 4000
"""Characters of a head that are read. Longer ones are no answers, and reading stays linear in time."""


@dataclass(slots=True)
class Findings:
    """What an answer says about the labels. Filled by the readers, judged by `answer.parse_answer`."""

    asserted: list[Slug] = field(default_factory=list)
    """Labels said to apply, in the order of the answer, once each."""
    parents: list[Slug] = field(default_factory=list)
    """Parents named without one of their children."""
    denied: set[Slug] = field(default_factory=set)
    """Labels and parents said not to apply."""
    says_none: bool = False
    has_foreign: bool = False
    """Names a label that is not in the set."""
    is_ambiguous: bool = False
    """Offers labels as alternatives, or names one in two ways that do not agree."""
    is_refused: bool = False
    """Says that it cannot answer."""
    cut: str | None = None
    """Where the answer breaks off: `cut_in_label`, `cut_in_list`, `cut_in_json`, `cut_in_table`."""
    ends_complete: bool = True
    """The last label is followed by the end of its sentence or value."""
    flags: set[str] = field(default_factory=set)

    @property
    def is_empty(self) -> bool:
        """Nothing that could be an answer was found."""
        return not (self.asserted or self.parents or self.says_none)

    @property
    def mentions(self) -> bool:
        """Whether any name of the vocabulary was found, also one denied or foreign."""
        return not self.is_empty or bool(self.denied) or self.has_foreign or self.is_ambiguous

    def merge(self, other: "Findings") -> None:
        """Adds what another part of the same answer says."""
        for slug in other.asserted:
            self.assert_label(slug)
        self.parents += [slug for slug in other.parents if slug not in self.parents]
        self.denied |= other.denied
        self.says_none |= other.says_none
        self.has_foreign |= other.has_foreign
        self.is_ambiguous |= other.is_ambiguous
        self.is_refused |= other.is_refused
        self.cut = self.cut or other.cut
        self.ends_complete = other.ends_complete
        self.flags |= other.flags

    def assert_label(self, slug: Slug) -> None:
        """Adds a label that applies; a second mention is only flagged."""
        if slug in self.asserted:
            self.flags.add("label_repeated")
        else:
            self.asserted.append(slug)


_MAX_REACH = 400
"""Characters between a name and the words that decide about it."""


def _tail(text: str, length: int = 40) -> str:
    """The end of `text`; what is cut off counts as other words, not as the start of a clause."""
    return text if len(text) <= length else "〇" + text[-length:]


def read_prose(vocabulary: Vocabulary, head: str) -> Findings:
    """What `head` (folded, without its explanation) says."""
    return _Reader(vocabulary, head).read()


class _Reader:
    def __init__(self, vocabulary: Vocabulary, head: str) -> None:
        self._task: Task = vocabulary.task
        self._vocabulary = vocabulary
        self._head = head[:MAX_HEAD]
        self._tokens: list[Token] = []
        self._found = Findings()
        self._accepted_surfaces: set[tuple[Slug, str]] = set()
        self._dropped_reason = False
        before, _, after = fold(self._task.answer or "").partition("{labels}")
        self._template = (before.strip(), after.strip())

    def read(self) -> Findings:
        text = self._mark_names(self._tidy(grammar.CHATTER.sub("", self._head)))
        text = grammar.TICKED_LINE.sub(self._untick, text)
        text = grammar.QUOTE.sub(self._unquote, text)
        if re.search(NAME, text) and grammar.EMPTY_ITEM.search(self._head):
            self._found.cut = "cut_in_list"
        text = grammar.VALUE_BELOW.sub(r"\1:", text)
        text = grammar.LATIN_STOP.sub("。", text)
        text = self._drop_reason(text)
        text = grammar.QUESTIONED.sub(r"\1:", text)
        text = self._drop_unfinished(self._complete_children(text))
        if self._found.cut is None:
            self._note_unknown_items(text)
        for match in grammar.SENTENCE.finditer(text):
            sentence = match.group()
            if "?" in sentence[-4:]:
                continue  # a question is no answer: the prompt echoed, or doubt
            if grammar.CONDITION.search(sentence):
                self._found.flags.add("undecided")
                self._found.is_ambiguous |= re.search(r"否则|\botherwise\b", sentence) is not None
                continue
            for slot in self._slots(self._read_exception(sentence.strip("。!;\n… \t"))):
                self._read_slot(slot)
        return self._found

    # --- Preparation

    def _tidy(self, text: str) -> str:
        text = grammar.EMPHASIS.sub("", text)
        text = grammar.HEADING.sub("", text)
        text = grammar.BULLET.sub("\n", text)
        text = grammar.LINE_NUMBER.sub("\n", text)
        text = grammar.INLINE_NUMBER.sub("\n", text)
        if not any(label.code for label in self._task.labels):
            text = grammar.OPTION_LETTER.sub("\n", text)
        text = grammar.HAN_GAP.sub("", text)
        return grammar.SHORT_QUOTE.sub(r"\1", text)

    def _mark_names(self, text: str) -> str:
        parts: list[str] = []
        end = 0
        asked = {place for match in grammar.WHETHER.finditer(text) for place in range(*match.span())}
        for token in self._vocabulary.tokens(text):
            if self._is_value(text, token) or token.start in asked:
                continue
            parts += [text[end : token.start], chr(FIRST_TOKEN + len(self._tokens))]
            self._tokens.append(token)
            end = token.end
        return "".join([*parts, text[end:]])

    def _is_value(self, text: str, token: Token) -> bool:
        """Whether a name is no label where it stands but the value of the name before it, or a step of a scale."""
        if token.surface in ("0", "1"):
            if grammar.SCALE.match(text, token.end):
                self._found.is_ambiguous = True
                return True
            if grammar.ORDINAL.search(text[max(0, token.start - 12) : token.start]):
                return True
        if token.surface == "a" and re.match(r"\s+[a-z]", text[token.end : token.end + 8]):
            return True  # the article, not the code
        if not self._tokens or self._tokens[-1].entry.kind == "topic":
            return False
        before = self._tokens[-1]
        gap = text[before.end : token.start]
        if token.surface in ("0", "1"):
            same = before.entry.slug == token.entry.slug and "(" in gap  # 低自杀风险（0）: its code
            return grammar.VALUE_GAP.fullmatch(gap) is not None and before.surface not in ("0", "1") and not same
        return token.entry.strict and grammar.CHANCE.match(gap) is not None

    def _untick(self, match: re.Match[str]) -> str:
        """A line of ticked and unticked names: those without a tick are denied."""
        kept = []
        for tick, part in grammar.TICK.findall(match.group()):
            if grammar.NO_TICK.fullmatch(tick):
                name = next((char for char in part if self._is_token(char)), None)
                if name is not None:
                    self._deny(self._token(name))
            else:
                kept.append(part)
        return "\n".join(kept)

    def _unquote(self, match: re.Match[str]) -> str:
        """Quotation marks around names go; any other quotation is the post's voice, not the answer's."""
        inside = match.group(1) or match.group(2) or ""
        rest = re.sub(rf"{NAME}|{SEPARATOR}|{grammar.SKIP_WORDS.pattern}|\s", "", inside)
        whole = match.start() <= 1 and match.end() >= len(match.string.rstrip()) - 1
        if whole or not rest or (self._template[0] and inside.startswith(self._template[0])):
            return inside
        return "〇"

    def _drop_reason(self, text: str) -> str:
        """Without a marker, `because ...` after a name begins the explanation."""
        first = next((place for place, char in enumerate(text) if self._is_name(char)), None)
        match = grammar.SOFT_MARKER.search(text, first) if first is not None else None
        if match is None:
            return text
        self._dropped_reason = True
        return text[: match.start()]

    def _is_token(self, char: str) -> bool:
        return 0 <= ord(char) - FIRST_TOKEN < len(self._tokens)

    def _is_name(self, char: str) -> bool:
        return self._is_token(char) and self._token(char).entry.kind != "topic"

    def _token(self, char: str) -> Token:
        return self._tokens[ord(char) - FIRST_TOKEN]

    # --- Cut-off answers

    def _drop_unfinished(self, text: str) -> str:
        """`text` without a label that breaks off at its end; notes where an answer without an end breaks off."""
        end = text.rstrip(" \t")
        self._found.ends_complete = not end or end[-1] in "。!;\n…)]】}"
        if self._found.ends_complete or self._dropped_reason or re.search(rf"{NAME}\s*[-–—:=(→]+\s*否$", end):
            return text
        before = self._template[0]
        sentence = re.split(r"[。\n]", end)[-1].strip()
        if before and len(sentence) > 1 and sentence in end[: -len(sentence)] and before.startswith(sentence[:2]):
            self._found.ends_complete = True  # the answer, begun once more
            return end[: -len(sentence)]
        if before and len(end) > 1 and before.startswith(end):
            self._found.cut = "cut_in_label"
        elif re.search(rf"[,、]$|{NAME}\s*(?:/|和|以及|与|及|##|\band)$", end):
            self._found.cut = "cut_in_list"
        else:
            start = self._unfinished_name(end)
            if start is not None:
                self._found.cut = "cut_in_label"
                return end[:start]
        return text

    def _unfinished_name(self, end: str) -> int | None:
        """Where a label name begins that the end of `end` breaks off; None where there is none."""
        before, after = self._template
        plain = ""
        for start in range(len(end) - 1, max(len(end) - 60, -1), -1):
            char = end[start]
            plain = (self._token(char).surface if self._is_token(char) else char) + plain
            context = end[:start]
            in_template = bool(before) and end.startswith(before)
            if self._is_token(char) and start == len(end) - 1:
                token = self._token(char).entry  # a whole name; 情感 may go on as 情感效应, unless ## stands before it
                if not (in_template and after and token.strict) or context.endswith("#"):
                    continue
            if char in " \n。,、;:!?" or not self._vocabulary.is_name_prefix(plain):
                continue
            if context == before or (
                grammar.LEFT_OF_ITEM.search(_tail(context)) and (in_template or re.search(NAME, context))
            ):
                return start
        return None

    # --- Slots

    def _complete_children(self, text: str) -> str:
        """`parent: word` with the first word of one of its children (驳斥：有效) names that child."""

        def complete(match: re.Match[str]) -> str:
            parent, word = self._token(match.group(1)), match.group(2)
            if parent.entry.kind != "parent":
                return match.group()
            is_name = len(word) == 1 and self._is_token(word)
            children = [label for label in self._task.labels if label.parent == parent.entry.slug]
            if is_name:
                entry = self._token(word).entry
                if not entry.strict or entry.slug in (label.slug for label in children):
                    return match.group()
                word = self._token(word).surface
            fitting = [label for label in children if label.zh.startswith(word)]
            if len(fitting) != 1 or any(word in label.aliases for label in children):
                return match.group()
            token = next(self._vocabulary.tokens(fold(fitting[0].zh)))
            self._tokens.append(token)
            completed = chr(FIRST_TOKEN + len(self._tokens) - 1)
            return f"{match.group()[: match.start(2) - match.start()]}{completed}"

        return re.sub(
            rf"({NAME})\s*(?:(?:##?|-+>?|→|[(])\s*(?={NAME})|:\s*)({NAME}|{HAN}{{2,4}})(?=\s*(?:$|[)的,、。;\n]))",
            complete,
            text,
        )

    def _read_exception(self, sentence: str) -> str:
        """除甲以外没有 asserts 甲 and nothing else; any other sentence stays as it is."""
        match = grammar.EXCEPT.search(sentence)
        match = match if match and re.search(NAME, match.group()) else None
        rest = sentence[: match.start()] + "," + sentence[match.end() :] if match else ""
        if match is None or not grammar.NEGATIVE.search(grammar.NOT_NEGATION.sub("", rest)):
            return sentence
        self._found.is_ambiguous |= any(map(self._is_name, rest))
        return match.group(1) or match.group(2)

    def _slots(self, sentence: str) -> list[str]:
        """`name: ... name: ...` on one line becomes one part for each name; other sentences stay whole."""
        starts = [
            match.start(1)
            for match in re.finditer(rf"(?:^|[\s,、;|)。])({NAME}\s*(?:[(][^()]*[)])?\s*[:=](?!=))", sentence)
        ]
        starts = [start for start in starts if self._token(sentence[start]).entry.kind != "topic"]
        if not starts:
            return [sentence]
        bounds = [0, *[start for start in starts if start], len(sentence)]
        return [part for left, right in pairwise(bounds) if (part := sentence[left:right].strip(" ,、|\t"))]

    def _read_slot(self, slot: str) -> None:
        match = re.match(rf"^[^{NAME[1:-1]}]{{0,8}}?({NAME})\s*(?:[(]([^()]*)[)])?\s*[:=]\s*(.*)$", slot, re.DOTALL)
        if match is None:
            self._read_clauses(slot)
            return
        token, rest = self._token(match.group(1)), match.group(3)
        if token.entry.kind in ("topic", "foreign") and not (token.entry.kind == "foreign" and rest):
            self._read_clauses(slot)
            return
        words = self._restore_words(rest) if self._vocabulary.opposite else rest
        if grammar.NO_VALUE.match(f":{rest}") or not rest.strip():
            if rest.strip():
                self._deny(token)
            else:
                self._read_clauses(match.group(1))
            return
        denies = grammar.DENYING_VALUE.match(":" + grammar.NOT_NEGATION.sub("〇", words))
        if denies or (words != rest and (grammar.NO_VALUE.match(f":{words}") or grammar.OPEN.search(words))):
            self._deny(token)
            return
        if token.entry.kind == "parent":
            self._read_clauses(slot)
            return
        if grammar.GRADE.match(rest):
            self._found.is_ambiguous = True
            return
        names = [self._token(char) for char in rest if self._is_name(char)]
        if names and not re.sub(rf"{NAME}|{SEPARATOR}|\s", "", rest):
            if token.entry.is_code and names[0].entry.slug == token.entry.slug:
                self._read_clauses(rest)
                return
            if token.entry.slug in self._vocabulary.opposite and all(name.entry.strict for name in names):
                self._read_clauses(rest)  # 是否患有抑郁症：否
                return
            single = self._task.kind in ("binary", "multiclass")
            if token.entry.is_code or (single and names[0].entry.slug != token.entry.slug):
                self._found.is_ambiguous = True  # 高自杀风险：低
                return
        self._read_clauses(slot[: slot.index(match.group(1)) + 1])  # `{name}: a sentence of the post`

    # --- Clauses

    def _read_clauses(self, text: str) -> None:
        sentence_denies = False
        single = self._task.kind in ("binary", "multiclass")
        for part in grammar.CONTRAST.split(text):
            sentence_denies = False
            part = grammar.ALL_DENIED.sub(self._deny_all, part)
            for clause in re.split(r"(?<!\d),|,(?!\d)", part):
                bare = not re.sub(rf"{NAME}|{SEPARATOR}|{grammar.SKIP_WORDS.pattern}|\s", "", clause)
                inherits = sentence_denies and bare and not single
                sentence_denies = self._read_clause(clause, inherits)

    def _deny_all(self, match: re.Match[str]) -> str:
        for char in match.group():
            if self._is_token(char):
                self._deny(self._token(char))
        return "〇"

    def _read_clause(self, clause: str, inherits: bool) -> bool:
        """Reads one clause; returns whether it denies a name in a way that may go on over the next comma."""
        if self._vocabulary.opposite:
            clause = self._restore_words(clause)
        places = self._places(clause)
        if not places:
            if grammar.NOTHING.match(clause):
                self._found.says_none = True
            return False
        blanked = clause
        for aside in (grammar.NOT_NEGATION, grammar.ASIDE):
            blanked = aside.sub(lambda match: "〇" * len(match.group()), blanked)
        governors = list(grammar.GOVERNOR.finditer(blanked))
        is_open = grammar.OPEN.search(clause) is not None
        self._found.is_ambiguous |= grammar.BETWEEN.search(clause) is not None
        if grammar.MAYBE.search(clause):
            self._found.flags.add("hedged")
        single = self._task.kind in ("binary", "multiclass")
        denied_any = False
        accepted: list[tuple[int, Token]] = []
        for index, place in enumerate(places):
            token = self._token(clause[place])
            left = clause[places[index - 1] + 1 if index else 0 : place]
            right = clause[place + 1 : place + 1 + _MAX_REACH]
            right += "〇" if place + 1 + _MAX_REACH < len(clause) else ""
            next_place = places[index + 1] if index + 1 < len(places) else len(clause)
            if token.entry.strict and not self._stands_alone(left, right):
                continue
            if grammar.OTHER_RISK.search(left) or is_open:
                continue
            if grammar.GRADE.match(right) and token.entry.kind != "topic":
                self._found.is_ambiguous = True
                continue
            if single and self._is_other_grade(clause, place):
                continue
            polarity = self._polarity(blanked, governors, place)
            if token.entry.kind == "topic":
                owner = (
                    index
                    and re.fullmatch(r"\s*(?:等|这?几?[种类])*的?\s*", left)
                    and self._token(clause[places[index - 1]]).entry.kind != "topic"
                )
                if (
                    (polarity == "denied" or grammar.NO_VALUE.match(right))
                    and not owner
                    and not grammar.OTHER.search(left)
                    and index + 1 == len(places)
                ):
                    self._deny(token)
                continue
            after = clause[place + 1 : next_place]
            carries_on = polarity == "denied" or inherits  # 没有 A，B; but not A：无，B
            has_no = grammar.NO_VALUE.match(right) and not grammar.YES_VALUE.match(right)
            if has_no or grammar.DENYING_VALUE.match(right):
                polarity = "asserted" if polarity == "denied" else "denied"
            elif grammar.DENIED_AFTER.match(after) or grammar.DENIED_AT_END.match(right) or inherits:
                polarity = "denied"
            opposite = self._vocabulary.opposite.get(token.entry.slug)
            if polarity == "denied" and opposite and not token.entry.strict and grammar.DIRECT_DENIAL.search(left):
                self._found.assert_label(opposite)
            elif polarity == "denied":
                self._deny(token)
                denied_any |= carries_on
            elif polarity == "asserted":
                accepted.append((place, token))
        self._assert_chain(clause, accepted)
        if is_open and not accepted:
            self._found.flags.add("undecided")
        return denied_any

    def _places(self, clause: str) -> list[int]:
        return [place for place, char in enumerate(clause) if self._is_token(char)]

    def _restore_words(self, clause: str) -> str:
        """没有, 是, no answer a yes/no question where they stand alone; inside a sentence they are words of it."""
        places = self._places(clause)
        parts = list(clause)
        for index, place in enumerate(places):
            surface = self._token(clause[place]).surface
            left = clause[places[index - 1] + 1 if index else 0 : place]
            if surface in grammar.YES_NO and not self._stands_alone(left, clause[place + 1 :]):
                parts[place] = surface
        return "".join(parts)

    def _is_other_grade(self, clause: str, place: int) -> bool:
        """Whether a grade (高, low) at `place` is one of something else than the risk, or one end of a range."""
        token = self._token(clause[place])
        if re.match(r"较?[高低]|high|low", token.surface) is None:
            return False
        before, after = clause[:place], clause[place + 1 :]
        step = re.search(rf"({NAME})({grammar.STEP.pattern})$", _tail(before))
        if grammar.HALF_WAY.search(_tail(before)) or (step and self._token(step.group(1)).entry.kind == "foreign"):
            self._found.is_ambiguous = True
            return True
        if grammar.GRADE_NAME.fullmatch(token.surface) is None:
            return False
        for char in (before[-1:], after[:1]):  # 风险的高低
            if char and self._is_name(char) and self._token(char).entry.strict:
                self._found.flags.add("undecided")
                return self._token(char).entry.slug != token.entry.slug
        return grammar.GRADES_RISK.search(_tail(before)) is None or grammar.GRADES_OTHER.match(after) is not None

    def _stands_alone(self, left: str, right: str) -> bool:
        """Whether an everyday word is used as a label: an item between separators, lead-ins and other names."""
        return bool(grammar.LEFT_OF_ITEM.search(_tail(left)) and grammar.RIGHT_OF_ITEM.search(right[:40]))

    def _polarity(self, clause: str, governors: list[re.Match[str]], place: int) -> str:
        """`asserted`, `denied` or `open`, by the last word before the name that says or denies something."""
        last = next((each for each in reversed(governors) if each.end() <= place), None)
        if last is None:
            return "asserted"
        group = last.groupdict()
        if not (group["zneg"] or group["zbare"] or group["eneg"] or group["ebare"]):
            return "asserted"
        reached = clause[last.end() : place]
        if len(reached) > _MAX_REACH:
            return "open"
        outside, bracket, inside = reached.partition("(")
        is_bare = group["zbare"] is not None or group["zverb"] == "有"
        is_filler = re.fullmatch(rf"(?:{grammar.DEGREE}|的)*", outside) or grammar.ANNOTATED.match(outside)
        if is_bare and bracket and ")" not in inside and not is_filler:
            return "asserted"  # 认为自己没有价值（乱贴标签）
        between = re.sub(rf"{NAME}|{SEPARATOR}|{grammar.DEGREE}|的", "", reached)
        reach = grammar.MAX_REACH_LATIN if between.isascii() else grammar.MAX_REACH_HAN
        if group["zbare"] in ("不", "无", "非", "未", "没") and len(between) > 2:
            return "asserted" if len(between) > 4 else "open"
        return "denied" if len(between) <= reach else "open"

    def _deny(self, token: Token) -> None:
        if token.entry.kind == "topic":
            self._found.says_none = True
        elif token.entry.kind != "foreign":
            self._found.denied.add(token.entry.slug)

    def _assert_chain(self, clause: str, accepted: list[tuple[int, Token]]) -> None:
        """Adds the names that a clause asserts, joining parents with their children and codes with their names."""
        previous: tuple[int, Token] | None = None
        depth = 0
        for place, token in accepted:
            gap = clause[previous[0] + 1 : place] if previous else None
            if previous is not None and gap is not None and re.fullmatch(r"\s*[-~–—到至]+\s*", gap):
                self._found.is_ambiguous |= all(
                    each.entry.is_code and each.entry.kind == "label" for each in (previous[1], token)
                )
            linked = previous is not None and gap is not None and grammar.LINK.match(gap) is not None
            if (
                previous is not None
                and gap is not None
                and grammar.EITHER.search(gap)
                and previous[1].entry.slug != token.entry.slug
            ):
                self._found.is_ambiguous = True
            if linked and previous is not None and gap is not None:
                before = previous[1].entry
                if before.is_code != token.entry.is_code and before.kind == token.entry.kind:
                    if before.slug != token.entry.slug:
                        self._found.is_ambiguous = True
                    previous = (place, token)
                    continue
                if before.kind == "parent" and token.entry.kind == "label":
                    depth = 1
                    self._join(before.slug, token)
                    previous = (place, token)
                    continue
                if depth and before.kind == "label" and token.entry.kind != "parent" and grammar.DEEPER.match(gap):
                    self._found.flags.add("third_level")
                    previous = (place, token)
                    continue
                if before.kind == "label" and token.entry.kind == "parent" and "(" in gap:
                    if self._task.by_slug[before.slug].parent != token.entry.slug:
                        self._found.flags.add("hierarchy_conflict")
                    previous = (place, token)
                    continue
                if "(" in gap and before.slug == token.entry.slug:
                    previous = (place, token)  # 读心术（Mind reading）
                    continue
            depth = 0
            self._assert(token)
            previous = (place, token)

    def _join(self, parent: Slug, token: Token) -> None:
        if self._task.by_slug[token.entry.slug].parent != parent:
            self._found.flags.add("hierarchy_conflict")
            if parent in self._found.parents:
                self._found.parents.remove(parent)
        self._assert(token)

    def _assert(self, token: Token) -> None:
        entry = token.entry
        if entry.kind == "foreign":
            self._found.has_foreign = True
        elif entry.kind == "parent":
            if entry.slug not in self._found.parents:
                self._found.parents.append(entry.slug)
        else:
            if entry.narrower:
                self._found.flags.add("alias_label")
            if entry.slug not in self._found.asserted:
                self._found.asserted.append(entry.slug)
            elif (entry.slug, token.surface) in self._accepted_surfaces:
                self._found.flags.add("label_repeated")
            self._accepted_surfaces.add((entry.slug, token.surface))

    # --- Labels out of the set

    def _note_unknown_items(self, text: str) -> None:
        """An item of the answer's list that is no name: said, but not in the label set."""
        before = self._template[0]
        _, in_template, region = text.partition(before) if before else ("", "", "")
        if in_template:
            region = re.split(r"[。!?;\n]", region)[0]
            topic = next(
                (match.start() for match in re.finditer(NAME, region) if not self._is_name(match.group())), None
            )
            if topic is not None:
                region = region[:topic].rstrip("的 ")
            items = grammar.ITEM_BREAK.split(region)
        else:
            lines = text.strip("。!.\n ").split("\n")
            items = [
                item
                for line in lines
                if not re.match(rf"\s*{NAME}[^:]{{0,8}}:", line)
                for item in re.split(r"[、,/]", re.sub(r"^[^:]{0,8}:", "", line))
            ]
            if len(items) < 2 or max(len(item.strip()) for item in items) > 8:
                return
            if not any(re.fullmatch(rf"\s*{NAME}\s*", item) for item in items):
                return
        for item in items:
            rest = grammar.SKIP_WORDS.sub("", item).strip()
            if (
                rest
                and not re.search(NAME, item)
                and not grammar.NOTHING.match(item)
                and not grammar.LEAD_ONLY.match(item)
                and not grammar.GOVERNOR.match(rest)
            ):
                self._found.flags.add("out_of_set_label")
