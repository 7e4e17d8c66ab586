"""Reading labels out of answers with a structure: JSON, tables of 0 and 1, vectors of 0 and 1."""

import json
import re
from collections.abc import Iterator
from typing import Any

from mentalglm.tasks.prose import Findings, read_prose
from mentalglm.tasks.task import HIERARCHY_SEPARATOR, Task
from mentalglm.tasks.text import fold
from mentalglm.tasks.vocabulary import Token, Vocabulary

_MAX_READ = 8000
"""Characters of a table that are read."""
_MAX_REPAIR = 2500
"""Characters of broken JSON that are repaired: labels come first, and repairing takes time by the square."""
_MAX_DEPTH = 6
_MAX_VALUE = 20
"""A longer value of a label is a sentence of the post, not yes, no or a figure."""
_MAX_ITEMS = 64
"""Items of a list that are read; no label set is longer, so a longer list repeats itself."""
_FENCE = re.compile(r"```[a-z]*")
_JSON_START = re.compile(
    r"[{]\s*(?:[\"'“‘]|[\w\u3400-\u9fff/]+\s*[:：]|[}])|"
    r"[\[]\s*(?:[\"'“‘{]|[01]\s*,|\](?=\s*(?:\Z|[\n。.,，;；`])))"
)
"""Not `[ ] name`, a box to be ticked, nor `[1] name`, a number."""
_JSON_NEXT = re.compile(r"[\s,，;；]*[{\[]")
_MAX_VALUES = 32
"""JSON values in a row that are read: one a line, or the answer repeated."""
_EXPLANATION_KEYS = {
    "理由", "解释", "原因", "分析", "说明", "依据", "推理", "推理过程", "判断依据", "reason", "reasons",
    "reasoning", "explanation", "explanations", "rationale",
    "analysis", "justification", "evidence", "证据", "thought", "thoughts", "comment",
}  # fmt: skip
_ANSWER_KEYS = {
    "label", "labels", "标签", "答案", "回答", "answer", "answers", "prediction", "predictions",
    "predicted_label", "predicted_labels", "预测", "预测标签",
    "预测结果", "类别", "分类", "分类结果", "类型", "结果", "result", "results", "output", "class",
    "classes", "category", "categories", "判断", "结论", "conclusion",
    "风险", "风险等级", "风险水平", "risk", "risk_level", "level", "suicide_risk", "cognitive_distortion",
    "cognitive_distortions", "distortion", "distortions",
    "认知路径", "路径", "pathway", "pathways", "path", "cognitive_pathway", "data", "items", "名称",
    "name", "child", "children", "子类", "子类别", "子标签", "二级",
    "二级标签", "parent", "父类", "父类别", "父标签", "大类", "一级", "一级标签", "小类", "stage", "阶段",
    "type", "types", "label_zh", "labels_zh", "type_name",
    "response", "存在", "present", "final_answer", "最终答案",
}  # fmt: skip
_PARENT_KEYS = ("parent", "父类", "父类别", "父标签", "大类", "一级", "一级标签", "stage", "阶段")
_CHILD_KEYS = (
    "child",
    "children",
    "子类",
    "子类别",
    "子标签",
    "小类",
    "二级",
    "二级标签",
    "label",
    "type",
    "标签",
    "类型",
    "labels",
)
_ANSWER_KEY = re.compile(
    r"(?:^|_)(?<!gold_)(?<!true_)(?:label|answer|class|category|prediction|result)s?(?:_(?:name|zh|en|text))?$|^体现|^存在"
)
_DENYING_KEY = re.compile(r"^(?:not|non|negative|absent|excluded?)(?:_|$)|^(?:未|不|非|无|没有|排除|否定)")
"""A key whose labels do not apply."""
_OTHER_KEYS = {
    "post", "text", "content", "quote", "sentence", "question", "input", "帖子", "原文", "内容", "句子", "文本", "问题",
    "options", "candidates", "选项", "候选", "label_options", "task",
}  # fmt: skip
_NEGATION_KEYS = {"negated", "negation", "is_negated", "negative", "否定", "denied"}
_PRESENCE_KEYS = {
    "present", "presence", "is_present", "exists", "applies", "applicable", "detected", "asserted", "value",
    "存在", "是否存在", "体现", "是否体现", "有无", "值",
}  # fmt: skip
_SCORE_KEYS = {"score", "confidence", "得分", "分数", "评分", "置信度"}
_CHANCE_KEYS = {"probability", "prob", "likelihood", "概率", "可能性"}
_TRUE = {"1", "1.0", "true", "yes", "是", "有", "存在", "体现", "√", "✓", "✔", "✅", "y"}
_FALSE = {
    "0",
    "0.0",
    "false",
    "no",
    "否",
    "无",
    "没有",
    "不存在",
    "未体现",
    "none",
    "null",
    "n/a",
    "",
    "×",
    "✗",
    "✘",
    "❌",
    "n",
    "-",
    "不",
    "nan",
}


def read_structured(vocabulary: Vocabulary, text: str, head_end: int) -> tuple[Findings, str | None] | None:
    """Findings and explanation of an answer with a structure; None where `text` (clean, not folded) has none.

    A structure that begins behind `head_end` belongs to the explanation and is not read.
    """
    head = text[:head_end]
    return _read_json(vocabulary, text, head_end) or _read_table(vocabulary, head) or _read_vector(vocabulary, head)


# --- JSON


def _read_json(vocabulary: Vocabulary, text: str, head_end: int) -> tuple[Findings, str | None] | None:
    """The first JSON value that answers, with those that follow it directly."""
    body = _FENCE.sub(lambda fence: " " * len(fence.group()), text)
    start = _JSON_START.search(body)
    if start is None or start.start() >= head_end:
        return None
    readers: list[_JsonReader] = []
    position = start.start()
    while len(readers) < _MAX_VALUES:
        rest = body[position:]
        end, cut_at = _json_extent(rest)
        if end is None and readers and vocabulary.task.kind in ("binary", "multiclass"):
            break  # the answer, begun once more
        value = _load_json(rest[: end or cut_at])
        if not isinstance(value, dict | list):
            break
        reader = _JsonReader(vocabulary)
        reader.read(value)
        if end is None:
            reader.found.cut = "cut_in_json"
        elif reader.found.is_empty and not reader.saw_answer:
            break
        readers.append(reader)
        following = _JSON_NEXT.match(rest, end) if end is not None else None
        if following is None:
            break
        position += following.end() - 1
    if not readers:
        return None
    sets = [set(reader.found.asserted) for reader in readers]
    found = readers[0].found
    for reader in readers[1:]:
        found.merge(reader.found)
    found.is_ambiguous |= max(map(len, sets)) > 1 and any(each != sets[0] for each in sets)
    return found, next((reader.explanation for reader in readers if reader.explanation), None)


def _json_extent(text: str) -> tuple[int | None, int]:
    """Where the first JSON value ends; (None, n) when it is cut off, n before the string that it is cut off in."""
    depth, quote, string_start = 0, "", 0
    position = 0
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\":
                position += 1
            elif char == quote:
                following = text[position + 1 : position + 40].lstrip()[:1]
                if following in tuple(",:}]，：") or not following or text[position + 1 : position + 2] == "\n":
                    quote = ""
        elif char in "\"'":
            quote, string_start = char, position
        elif char == "“":
            quote, string_start = "”", position
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
            if depth <= 0:
                return position + 1, position + 1
        position += 1
    return None, string_start if quote else len(text)


def _load_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    import json_repair  # only for broken answers

    try:
        return json_repair.loads(text[:_MAX_REPAIR], skip_json_loads=True)
    except Exception:  # the parser is total: what cannot be repaired is read as prose
        return None


class _JsonReader:
    """Walks a JSON value; label names may be values, or keys with 0 or 1."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._task: Task = vocabulary.task
        self.found = Findings()
        self.explanation: str | None = None
        self.saw_answer = False

    def read(self, value: Any, depth: int = 0) -> None:
        """Adds what an answer value says."""
        if depth > _MAX_DEPTH:
            return
        if isinstance(value, dict):
            self._read_dict(value, depth)
        elif isinstance(value, list):
            self._read_list(value, depth)
        else:
            self._read_scalar(value)

    def _read_dict(self, value: dict[Any, Any], depth: int) -> None:
        if self._read_denial(value, depth):
            return
        known = False
        joined = self._join_levels(value)
        if joined is not None:
            self._read_text(joined)
            value = {key: each for key, each in value.items() if _fold_key(key) in _EXPLANATION_KEYS}
            known = True
        others: list[tuple[str, Any]] = []
        for key, each in value.items():
            name = _fold_key(key)
            entry = self._vocabulary.entry_of(str(key))
            if name in _EXPLANATION_KEYS:
                if self.explanation is None and isinstance(each, str) and each.strip():
                    self.explanation = each.strip()
            elif (
                entry is not None
                and entry.kind != "topic"
                and not (entry.is_code and len(name) == 1 and not self._is_code_map(value))
            ):
                known = True
                self._read_named(str(key), entry.kind, entry.slug, each, depth)
            elif _DENYING_KEY.search(name):
                known = True
                self._deny_all(each, depth)
            elif name in _ANSWER_KEYS or _ANSWER_KEY.search(name) or (entry is not None and entry.kind == "topic"):
                known = True
                self.read(each, depth + 1)
            elif _is_flag(each) and (named := self._name_in(str(key))) is not None:
                known = True
                self._read_named(named.surface, named.entry.kind, named.entry.slug, each, depth)
            elif name not in _OTHER_KEYS:
                others.append((name, each))
        if not known:  # {"result of the analysis": "..."}, {"data": {...}}
            nested = [each for _, each in others if isinstance(each, dict | list)]
            for each in nested:
                self.read(each, depth + 1)
            if not nested and len(others) == 1:
                name, each = others[0]
                if isinstance(each, str) and len(each) <= _MAX_VALUE:
                    self._read_text(f"{name.replace('_', ' ')}: {each}")  # of a grade, the key says what it grades
                else:
                    self.read(each, depth + 1)

    def _name_in(self, key: str) -> Token | None:
        """The only label that a longer key names (is_high_risk)."""
        names = [
            token
            for token in self._vocabulary.tokens(fold(key).replace("_", " "))
            if token.entry.kind != "topic" and not token.entry.strict
        ]
        return names[0] if len(names) == 1 else None

    def _read_denial(self, value: dict[Any, Any], depth: int) -> bool:
        """{"label": ..., "present": false}: the labels that the rest names are denied, not asserted."""
        keys = {_fold_key(key): each for key, each in value.items()}
        if any(_is_flag(keys[key]) and fold(str(keys[key])).strip() in _TRUE for key in _NEGATION_KEYS & keys.keys()):
            self.saw_answer = self.found.is_ambiguous = True
            return True
        if any(_is_low(keys[key]) for key in _CHANCE_KEYS & keys.keys()):
            self.saw_answer = self.found.is_ambiguous = True
            return True
        flags = [key for key in _PRESENCE_KEYS & keys.keys() if _is_flag(keys[key])]
        if not flags:
            return False
        inner = _JsonReader(self._vocabulary)
        inner.read({key: each for key, each in value.items() if _fold_key(key) not in flags}, depth + 1)
        named = {*inner.found.asserted, *inner.found.parents}
        if not named or any(fold(str(keys[key])).strip() in _TRUE for key in flags):
            return False
        self.saw_answer = True
        self.found.denied |= named | inner.found.denied
        self.found.is_ambiguous |= inner.found.is_ambiguous
        self.explanation = self.explanation or inner.explanation
        return True

    def _deny_all(self, value: Any, depth: int) -> None:
        """{"absent": [...]}: what the value names is denied."""
        inner = _JsonReader(self._vocabulary)
        inner.read(value, depth + 1)
        self.found.denied |= {*inner.found.asserted, *inner.found.parents}

    def _is_code_map(self, value: dict[Any, Any]) -> bool:
        """Whether the keys are codes (A, B5) rather than the letters of an option list."""
        entries = [self._vocabulary.entry_of(str(key)) for key in value if _fold_key(key) not in _EXPLANATION_KEYS]
        return self._task.kind == "hierarchical" and all(entry is not None and entry.is_code for entry in entries)

    def _join_levels(self, value: dict[Any, Any]) -> str | None:
        """{"parent": ..., "child": ...} as `parent##child`."""
        if self._task.kind != "hierarchical":
            return None
        keys = {_fold_key(key): each for key, each in value.items()}
        parent = next((keys[key] for key in _PARENT_KEYS if isinstance(keys.get(key), str)), None)
        child = next((keys[key] for key in _CHILD_KEYS if isinstance(keys.get(key), str)), None)
        if parent is None or child is None:
            return None
        return parent if fold(child).strip() in _FALSE else f"{parent}{HIERARCHY_SEPARATOR}{child}"

    def _read_named(self, key: str, kind: str, slug: str, value: Any, depth: int) -> None:
        """A label as key: 0 and 1, 否 and 是, the sentence that shows it; a parent as key: its children."""
        self.saw_answer = True
        if isinstance(value, dict) and value:
            keys = {_fold_key(name): each for name, each in value.items()}
            inside = next((keys[name] for name in _CHILD_KEYS if name in keys), None) if kind == "parent" else None
            applies = next((keys[name] for name in keys if name in _PRESENCE_KEYS and _is_flag(keys[name])), None)
            scores = [keys[name] for name in (_CHANCE_KEYS | _SCORE_KEYS) & keys.keys()]
            if any(_is_low(each) or (isinstance(each, float) and each < 1) for each in scores):
                self.found.is_ambiguous = True
                return
            if inside is not None or applies is not None:  # {"读心术": {"present": false, "evidence": ""}}
                value = inside if inside is not None else applies
        folded = fold(str(value)).strip() if isinstance(value, str | int | float | bool) or value is None else ""
        if value in ([], {}) or value is None or (folded in _FALSE and not isinstance(value, list | dict)):
            opposite = self._vocabulary.opposite.get(slug)
            if opposite is not None and len(_fold_key(key)) > len(slug):  # {"suffers_from_depression": false}
                self.found.assert_label(opposite)
            elif kind != "foreign":
                self.found.denied.add(slug)
        elif isinstance(value, float) and value not in (0.0, 1.0):
            self.found.is_ambiguous = True  # a probability: where to cut is not ours to say
        elif folded in _TRUE:
            self._read_text(key)
        elif kind == "parent":
            if isinstance(value, dict):
                for child, each in value.items():
                    entry = self._vocabulary.entry_of(str(child))
                    if entry is not None and _is_flag(each) and fold(str(each)).strip() in _FALSE:
                        self.found.denied.add(entry.slug)
                    elif entry is not None:
                        self._read_text(f"{key}{HIERARCHY_SEPARATOR}{child}")
            else:
                children = value if isinstance(value, list) else [value]
                for child in children:
                    self._read_text(
                        f"{key}{HIERARCHY_SEPARATOR}{child}" if self._is_named(child) else f"{key}：{child}"
                    )
        elif isinstance(value, str) and len(value) <= _MAX_VALUE and not re.search(r"[。.!?;\n](?!\d)", folded):
            self._read_text(f"{key}: {value}")  # {"high_risk": "10%"}
        else:
            self._read_text(key)

    def _is_named(self, value: Any) -> bool:
        return isinstance(value, str) and self._vocabulary.entry_of(value) is not None

    def _read_list(self, value: list[Any], depth: int) -> None:
        self.saw_answer = True
        if not value:
            self.found.says_none = True
        elif all(_is_bit(each) for each in value) and len(value) > 1:
            _read_bits(self._vocabulary, [str(int(each)) for each in value], self.found)
        else:
            for each in value[:_MAX_ITEMS]:
                self.read(each, depth + 1)

    def _read_scalar(self, value: Any) -> None:
        self.saw_answer = True
        if value is None:
            return
        if isinstance(value, bool):
            value = int(value)
        self._read_text(str(value))

    def _read_text(self, text: str) -> None:
        self.saw_answer = True
        part = read_prose(self._vocabulary, fold(text).strip())
        if part.is_empty and not part.mentions and 0 < len(text.strip()) <= 20 and "undecided" not in part.flags:
            part.flags.add("out_of_set_label")
        part.cut = None  # whether a string is cut off, its quotation mark says
        part.ends_complete = True
        self.found.merge(part)


def _fold_key(key: Any) -> str:
    """`Label 2`, `label2` -> `label`."""
    return re.sub(r"_?\d+$", "", re.sub(r"[\s\-]+", "_", fold(str(key)).strip()))


def _is_bit(value: Any) -> bool:
    return (isinstance(value, int) and value in (0, 1)) or (isinstance(value, str) and value.strip() in ("0", "1"))


def _is_low(value: Any) -> bool:
    """Whether a label with this probability is not the answer; how a text counts, cannot be told."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return isinstance(value, str) and re.search("[低小]|low|small|[%.]", fold(value)) is not None
    return value < 0.5


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool) or fold(str(value)).strip() in _TRUE | _FALSE


# --- Tables


def _read_table(vocabulary: Vocabulary, text: str) -> tuple[Findings, str | None] | None:
    """Markdown tables: one column for each label, or one row for each."""
    text = text[:_MAX_READ]
    if text.count("|") < 2 and "\t" not in text:
        if "\n" not in text or _BITS.search(text) is None:
            return None
        text = re.sub("[,，]", "|", text)  # CSV
    rows = list(_rows(text))
    labels = dict.fromkeys(vocabulary.task.answerable, True)
    for index, row in enumerate(rows):
        columns = [_slug_of(vocabulary, cell, labels) for cell in row]
        num_named = sum(slug is not None for slug in columns)
        if num_named < min(3, len(labels)) or num_named < len(columns) - 2:
            continue
        return _read_columns(vocabulary, columns, rows[index + 1 :]), None
    parents = _read_parents(vocabulary, rows)
    if parents is not None:
        return parents
    num_labels = len(labels)
    for row in rows:  # the header is missing
        if len(row) in (num_labels, num_labels + 1) and all(cell in ("0", "1") for cell in row[-num_labels:]):
            found = Findings()
            _read_bits(vocabulary, row[-num_labels:], found)
            return found, None
    return _read_label_rows(vocabulary, rows, labels)


def _rows(text: str) -> Iterator[list[str]]:
    if "|" in text:
        text = re.sub(r"/n|\\n", "\n", text)
    for line in text.split("\n"):
        if "|" in line or "\t" in line:
            stripped = line.strip().strip("|")
            cells = [fold(cell).strip(" *`") for cell in re.split(r"[|\t]", stripped)]
            if not all(re.fullmatch(r":?-+:?|", cell) for cell in cells):
                yield cells


def _slug_of(vocabulary: Vocabulary, cell: str, labels: dict[str, bool]) -> str | None:
    entry = vocabulary.entry_of(cell.rsplit(HIERARCHY_SEPARATOR, 1)[-1])
    return entry.slug if entry is not None and entry.slug in labels and not entry.is_code else None


def _read_columns(vocabulary: Vocabulary, columns: list[str | None], rows: list[list[str]]) -> Findings:
    found = Findings()
    named = [slug for slug in columns if slug is not None]
    rows = [row for row in rows if any(cell for cell in row)]
    if not rows:
        for slug in named:  # only the header: the label list, echoed
            found.assert_label(slug)
        return found
    values: list[dict[str, str]] = []
    for row in rows:
        cells = row[-len(named) :] if len(row) == len(named) else row
        names = named if len(row) == len(named) else columns
        values.append({slug: cell for slug, cell in zip(names, cells, strict=False) if slug is not None})
    for slug in named:
        answers = {each.get(slug) for each in values}
        if len(answers) > 1:
            found.is_ambiguous = True  # several rows that do not agree
            return found
        answer = answers.pop()
        if answer is None:
            found.cut = "cut_in_table"
        elif answer in _TRUE:
            found.assert_label(slug)
        elif answer in _FALSE:
            found.denied.add(slug)
        else:
            found.is_ambiguous = True
    return found


def _read_parents(vocabulary: Vocabulary, rows: list[list[str]]) -> tuple[Findings, str | None] | None:
    """A column for each parent, with its children or 无 below."""
    for header, *below in (rows[index:] for index in range(len(rows) - 1)):
        entries = [vocabulary.entry_of(cell) for cell in header]
        if len(header) < 2 or not all(entry is not None and entry.kind == "parent" for entry in entries):
            continue
        reader = _JsonReader(vocabulary)
        for row in below:
            reader.read(dict(zip(header, row, strict=False)))
        if len(below[-1]) < len(header):
            reader.found.cut = "cut_in_table"
        return reader.found, None
    return None


def _read_label_rows(
    vocabulary: Vocabulary, rows: list[list[str]], labels: dict[str, bool]
) -> tuple[Findings, str | None] | None:
    found = Findings()
    named = 0
    for row in rows:
        slugs = [slug for cell in row if (slug := _slug_of(vocabulary, cell, labels))]
        rest = [cell for cell in row if _slug_of(vocabulary, cell, labels) is None]
        if len(slugs) == 1 and len(row) < 2 and row is rows[-1] and named:
            found.cut = "cut_in_table"
        if len(slugs) != 1 or len(row) < 2:
            continue
        named += 1
        if any(cell in _FALSE - {""} for cell in rest):
            found.denied.add(slugs[0])
        else:
            line = HIERARCHY_SEPARATOR.join(cell for cell in row if vocabulary.entry_of(cell) is not None)
            found.merge(read_prose(vocabulary, line + "。"))
    return (found, None) if named else None


# --- Vectors

_BITS = re.compile(r"(?<![\d.,/])[01](?:[\s,，、;；|/]{1,3}[01])+(?![\d./%])|(?<!\d)[01]{4,}(?!\d)")


def _read_vector(vocabulary: Vocabulary, text: str) -> tuple[Findings, str | None] | None:
    """0/1 vectors with exactly one value for each label."""
    text = fold(text[:2000])
    runs = [match.group() for match in _BITS.finditer(text)]
    if not runs:
        return None
    rest = _BITS.sub("", text)
    if len(re.sub(r"[\W_]", "", rest)) > 12:
        return None  # digits inside prose
    found = Findings()
    if len(runs) > 1:
        found.is_ambiguous = True
        return found, None
    _read_bits(vocabulary, re.findall("[01]", runs[0]), found)
    return found, None


def _read_bits(vocabulary: Vocabulary, bits: list[str], found: Findings) -> None:
    slugs = vocabulary.task.answerable
    if vocabulary.task.kind == "binary" or len(bits) != len(slugs):
        found.is_ambiguous = True  # which value belongs to which label cannot be told
        return
    for slug, bit in zip(slugs, bits, strict=True):
        if bit == "1":
            found.assert_label(slug)
        else:
            found.denied.add(slug)
