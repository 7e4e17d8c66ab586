"""Reading labels out of the head of an answer that is written as text: what it asserts, what it denies.

The steps, in order: make one list of items out of Markdown; find the names of the closed vocabulary, longest first,
and put one private-use character in the place of each; drop quotations of the post; cut into sentences, slots
(`name: value`) and clauses; decide for every name whether its clause asserts it, denies it or leaves it open.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise

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


# One private-use character stands for each name found; which one, its number says.
_FIRST_TOKEN = 0xE000
_T = "[\ue000-\uf8ff]"
_HAN = "[\u3400-\u9fff]"

# --- Markdown and layout ---
_EMPHASIS = re.compile(r"\*{1,3}|__|~~|`+|\\(?=[_*#])")
_HEADING = re.compile(r"(?m)^[ \t]*#{1,6}[ \t]+")
_BULLET = re.compile(r"(?m)^[ \t]*(?:[-*+•·●○▪◦‣>][ \t]+|[•·●○▪◦‣])")
_NUMBER = r"(?:\d{1,2}|[一二三四五六七八九十]{1,2})"
_LINE_NUMBER = re.compile(
    rf"(?m)^[ \t]*(?:[(]?{_NUMBER}\s*[.、):]|第?{_NUMBER}[、,:]|[(]{_NUMBER}[)]|\d{{1,2}}(?={_HAN}))[ \t]*(?=\S)"
)
_INLINE_NUMBER = re.compile(rf"(?<=[\s,、;。:]){_NUMBER}\s*[.、)]\s*(?={_HAN}|[a-z]{{3}})|[(](?!0[)])\d{{1,2}}[)]\s*")
_OPTION_LETTER = re.compile(r"(?m)(?:^|(?<=[\s:]))[(]?[a-h]\s*[.)、]\s*(?=\S)")
_HAN_GAP = re.compile(rf"(?<={_HAN})[ \t\xa0]+(?={_HAN})")
_SHORT_QUOTE = re.compile(r"[“\"‘「『《]([^“”\"‘’「」『』《》。!?,\n]{1,4})[”\"’」』》]")
_QUOTE = re.compile(r"[“\"「『《]([^“”\"「」『』《》\n]*)[”\"」』》]|(?<![a-z])[‘']([^‘’'\n]{1,60})[’'](?![a-z])")
_LATIN_STOP = re.compile(rf"\.(?=\s|$|{_HAN}|{_T}|[”\"')\]])")

# --- Sentences, clauses ---
_SENTENCE = re.compile(r"[^。!?;\n…]*[。!?;\n…]*")
_CONTRAST = re.compile(
    r"(?=而是|而属于|而体现|而应|但是?|却|反而|因此|所以|故而?(?=属|判|为)|从而|可见|综上|总之)"
    r"|\b(?=but\b|however\b|instead\b(?! of)|so\b|therefore\b|thus\b|hence\b|although\b|though\b|yet\b)"
)
_SOFT_MARKER = re.compile(r"因为|由于|是因|原因是|\b(?:because|since|as the (?:post|poster|author|user))\b")

# --- What may stand around an everyday word that is meant as a label ---
_SEPARATOR = (
    r"(?:[、,/;|+&\n。!?…:(){}\[\]【】<>→=–—#~\-]|->|和|以及|与|及|并且?|且|同时|还有|还|也|或者?|还是|其次|另外|"
    r"因此|所以|而是|但|却|\bso\b|\bthus\b|\bhence\b|\btherefore\b|\band\b|\bor\b|\balso\b|\bplus\b|\bwell as\b)"
)
_DEGREE = (
    r"(?:较为|较|比较|很|非常|极其|极|相对|偏|十分|特别|更|明显的?|明确的?|显著的?|一些|一定的?|一种|某种|"
    r"典型的?|轻微的?|强烈的?|过度的?|任何|"
    r"\b(?:very|relatively|quite|rather|clearly|a|an|the|some|any|of|clear|signs?|symptoms?|level)\b|\s)"
)
_LEAD = (
    r"(?:体现|表现|属于|存在|反映|显示|是|为|有|即|涉及|包括|包含|含有|含|具有|呈现|展现|展示|归类?|判断|判定|"
    r"评估|评定|分类|预测|标签|答案|类型|类别|结果|"
    r"结论|等级|级别|程度|风险|水平|回答|输出|处于|中的|下的|里的|关于|患|选择?|"
    r"\b(?:is|are|be|as|to|shows?|showing|has|have|having|exhibits?|displays?|indicates?|suggests?|reflects?|"
    r"demonstrates?|"
    r"with|labels?|answer|prediction|category|class|risk|type|includes?|of|at|from|contains?|related|by|"
    r"option|namely)\b)"
)
_LEAD_ONLY = re.compile(rf"^\s*(?:{_LEAD})+\s*$")
_LEFT_OF_ITEM = re.compile(rf"(?:^|{_SEPARATOR}|{_LEAD}(?:了|出|着|到|于|为|是|的|有|在)*)\s*{_DEGREE}*$")
_TRAIL = (
    r"(?:认知|这|类|型|事件|错误|偏差|思维|谬误|现象|倾向|相关|有关|方面|因素|风险|等|问题|水平|程度|级|特征|"
    r"表现|模式|两|三|四|情况|阶段|环节|"
    r"\b(?:cognitive|distortions?|thinking|risks?|symptoms?|issues?|bias|errors?|patterns?|types?|levels?|"
    r"category|class|"
    r"problems?|related|dimension|disorders?|causes?|in|is|for|here|present|as)\b)"
)
_RIGHT_OF_ITEM = re.compile(rf"^\s*(?:$|{_SEPARATOR}|[.”\"']|的?\s*{_TRAIL}|的\s*$|{_T}|的\s*{_T})")

# --- Who governs a name ---
_NOT_NEGATION = re.compile(
    r"不仅仅?|不但|不只|不光|不单|毫无疑问|毫无疑义|无疑|不得不|不可否认|除非|非常|是非|无论|不管|不断|不满(?!足)|"
    r"不安|不良|不幸|不同|不少|无助|无望|"
    r"无价值|无意义|无能|无力|无奈|无用|无聊|没用|行为|因为|以为|作为|为了|成为|为什么|(?<![不没])认为|人为|"
    r"\bnot (?:only|just|merely|simply)\b|\bno doubt\b|\bwithout (?:a )?doubt\b"
)
_NEGATION_WORD = (
    r"(?:没有|无|缺乏)(?:足够|充分|明确|明显)?的?(?:证据|依据|迹象|理由|必要)|没必要|不(?:宜|建议|主张|倾向于?|必|该)|"
    r"并没有|并未|没有|未曾|未能|并不|不会|不能|不足以|无法|并无|毫无|并非|不再|不应|不|没|未|无"
)
_ADVERB = (
    r"(?:明显|直接|明确|充分|真正|完全|一定|能够|能|应该|应当|应|会|必|足以|清晰|具体|显著|真的|强烈|可以|被|太|"
    r"很|再|地|单纯)"
)
_VERB = (
    r"体现|表现|属于|存在|反映|显示|涉及|包含|包括|含有|构成|符合|具有|呈现|展现|展示|判断|判定|归为|归类|"
    r"归入|患|达到|出现|发现|看到|看出|见到|提到|"
    r"判为|评为|列为|定为|视为|认为|觉得|认定|证明|说明|表明|表达|提示|暗示|支持|满足|处于|是|为|有|含|算|见|像"
)
_GOVERNOR_ZH = (
    rf"(?P<zneg>{_NEGATION_WORD})?{_ADVERB}*(?P<zverb>{_VERB})(?:是|为|属于|存在|有|患有?)*|(?P<zbare>没有|没|无|毫无|并无|缺乏|缺少|排除|否认|"
    rf"并非|而非|非|不|未)"
)
_VERB_EN = (
    r"(?:shows?|showing|exhibits?|displays?|indicates?|suggests?|reflects?|demonstrates?|has|have|had|is|are|"
    r"was|be|belongs?|contains?|"
    r"presents?|suffer(?:s|ing)?|involves?|includes?|reveals?|classified|label+ed|falls?|expresses|expressing|"
    r"experienc(?:es|ing)|appears?|seems?|fits?)"
)
_GOVERNOR_EN = (
    rf"(?P<eneg>\b(?:not|never|no|nor|neither|cannot)\b|n['’]t\b)\s+(?:[a-z]+\s+){{0,3}}?(?P<everb>{_VERB_EN})\b"
    r"|(?P<ebare>\b(?:not|no|without|neither|nor|never|lacks?|lacking|rather than|instead of|absence of|"
    r"absent|free of|den(?:y|ies)|"
    rf"rules? out|ruled out)\b|n['’]t\b)|(?P<epos>\b{_VERB_EN}\b)"
)
_GOVERNOR = re.compile(f"{_GOVERNOR_ZH}|{_GOVERNOR_EN}")
_MAX_REACH_HAN, _MAX_REACH_LATIN = 10, 48
_OPEN = re.compile(
    r"(?:无法|不能|难以|很难|不好|不足以|未能|没法|不便)[^,。;]{0,8}?(?:判断|确定|判定|确认|得知|评估|断定|"
    r"得出|给出|排除|识别|区分|分类)|不排除|"
    r"不确定|不清楚|不知道|未知|不明(?!显)|是否|有没有|是不是|会不会|可选|候选|选项(?=\s*:|有|包括)|如果|假如|"
    r"倘若|(?<![主次重])要是|假设|若(?!干)|与其|看似|貌似|看(?:上去|起来)像|(?:不是|并非|不能说|不见得)没有?|表面上?|乍一?看|不(?:太|大)?可能|不见得|未必|"
    r"(?:很难|难以)(?:说|算|称|认为|认定|归|判|构成)|(?:算|称|谈|够|说)不上|不能(?:说|算|认为|认定|归|称|视)|"
    rf"{_T}于\s*{_T}|{_T}(?:的)?(?:存疑|(?:证据|依据|理由)(?:都|并)?不(?:足|充分)|可以?排除|反面|对立面)|接近|还?有距离|"
    r"\bcannot be\b|\bfar from\b|\bclose to\b|\b(?:unlikely|improbable|hardly|doubtful|not likely)\b|"
    r"\b(?:cannot|can['’]?t|could not|couldn['’]?t|unable|not able|not possible|impossible|difficult|"
    r"hard)\b[^,.;]{0,24}?"
    r"\b(?:determine[d]?|tell|say|assess|decide|judge|classify|conclude|rule out|help|assist|identify|provide|"
    r"evaluate)\b|"
    r"\b(?:unclear|uncertain|unsure|not sure|insufficient|whether|if|unknown|don['’]?t know|do not know|not enough)\b"
)
_MAYBE = re.compile(r"可能|或许|也许|似乎|大概|疑似|\b(?:might|may|maybe|possibly|perhaps|probably|likely|seems?)\b")
_EITHER = re.compile(r"还是|或者?|抑或|\bor\b")
_VALUE_END = r"\s*[)|]?\s*(?=$|[,、;。|(]|\s)"
_NO_VALUE = re.compile(
    r"^\s*(?:(?:是|为|[:=|(→]|##?|[-–—]+(?=\s*[否无没不]))\s*(?:无|没有|否|没|缺失|存疑|排除|(?:证据|依据)?不足|不(?:存在|成立|明显|大|高|满足|确定|太可能|可能|支持)|"
    r"未(?:见|发现|达到|满足)|(?:可能性|概率|几率)?(?:很|较|极|比较)?[低小]|n|不适用|不涉及|未体现|没有体现|未出现|未涉及|未提及|不是|"
    r"不属于|不符合|0(?:\.0+)?|no|none|not present|"
    rf"absent|missing|n/a|null|nil|false|×|✗|✘|❌|-{{1,3}}|—)|(?:皆|均|都)?(?:无|没有|否|0|×|✗|✘|❌)){_VALUE_END}"
)
_YES_VALUE = re.compile(rf"^\s*[:=|(]?\s*(?:有|是|存在|1(?:\.0+)?|yes|true|present|√|✓|✔|✅){_VALUE_END}")
_DENIAL = (
    r"(?:并)?(?:不(?:存在|明显|成立|适用|符合|满足|大|高|算|正确|准确|对(?=$))|没有(?:体现|出现|表现)|未(?:体现|出现|见)|"
    r"缺失|缺乏|欠缺|(?:是|属于)?(?:错误的|错的|误判)|(?:被|已)?排除|"
    r"\s*(?:is|are|was|were|does|do)(?: not|n['’]t)\b|\s*(?:is|are|was|were)?\s*(?:both |all )?"
    r"(?:not present|absent|missing|lacking|wrong|incorrect|excluded|ruled out))"
)
_DENIED_AFTER = re.compile(
    rf"^(?:的|这一|方面)*(?:迹象|特征|表现|倾向|标签|判断|结论)?(?:都|均|皆|也)?{_DENIAL}"
    r"|^(?:的|\s)*(?:可能性|概率|几率|probability|likelihood|chance)[^,。;]{0,6}?"
    r"(?:低|小|不大|不高|没有|微乎其微|为零|为0|\blow\b|\bsmall\b)"
)
_DENIED_AT_END = re.compile(r"^(?:都|均|皆|也|是|并)*(?:没有|没|无)\s*$")
_LIST = r"(?:[、/|+&\s]|和|以及|与|及|并且?|且|或者?|还有|\band\b|\bor\b)"
_ALL_DENIED = re.compile(
    rf"(?:^(?:{_T}|{_LIST}|,)*{_T}|{_T}(?:{_LIST}{{0,4}}{_T}){{0,12}})(?:这?[两三四几]种|等|的(?:迹象|表现))?[,\s]*"
    rf"(?:(?:都|均|皆|全)(?:没有|没|无|未|不(?!仅|只|但)|{_DENIAL})"
    r"|\s(?:are|were|do)\s+(?:both\s+|all\s+)?(?:not\b|absent|missing|lacking|unlikely|wrong|incorrect)"
    r"|\s(?:are|were|do)n['’]t\b)[^,。;]*"
)
"""A list and a denial of all of it: 甲、乙都没有."""
_GRADE = re.compile(
    r"^[)\]]?\s*(?:的?(?:概率|几率|可能性|得分|评分|分数|比例|probability|likelihood|score))?\s*(?:[:=(]|是|为|约)?\s*"
    r"(?:约|大约|\babout\b)?\s*(?:(?!0\.0+(?!\d)|1\.0+(?!\d))\d*\.\d+|\d+(?:\.\d+)?\s*%|百分之)"
)
"""A probability behind a name: where to cut is not ours to say."""
_CHANCE = re.compile(r"^[^,。;!?\n]{0,6}(?:可能性|概率|几率|probability|likelihood|chance)[^,。;!?\n]{0,6}$")
_SCALE = re.compile(r"\s*(?:[(,]?\s*(?:共|满分|总分|out of\b)|[级分星]|/\s*\d|[-~到至]\s*\d)")
_VALUE_GAP = re.compile(r"[ \t]*[:=|(][ \t]*|[ \t]+")
_QUESTIONED = re.compile(rf"({_T})\s*[?]\s*(?=(?:yes|no|是|否|有|没有|无)(?:的)?\s*(?:[.。,;!\n]|$))")
_EXCEPT = re.compile(
    rf"除了?((?:{_T}|{_LIST})*)(?:以外|之外|外)"
    rf"|(?:other than|except(?: for)?|besides|apart from)((?:{_T}|{_LIST})+)"
)
_NEGATIVE = re.compile(r"没有|没|无|未|不|\b(?:no|not|none|nothing)\b")
_CONDITION = re.compile(
    rf"(?:如果|假如|倘若|假设|若(?!干)|(?<![主次重])要是)[^。]*{_T}|^\s*if\b[^。]*{_T}"
    rf"|(?:否则|\botherwise\b)[^。]*{_T}"
)
_BETWEEN = re.compile(rf"{_T}之间|\bbetween\s+{_T}")
_OTHER = re.compile(r"(?:其他|其它|别的|更多|\bother|\bfurther|\badditional)(?:的|任何|类型的?)?\s*$")
_OTHER_RISK = re.compile(
    r"(?:抑郁症?|焦虑症?|他杀|自残|自伤|暴力|伤人|犯罪|复发|疾病|健康|经济|财务|心脏病?|\bdepression|\banxiety|"
    rf"\bhomicide|\bviolence|\brelapse|\bself-harm)的?\s*(?:(?:风险|程度|水平|等级|\brisk)(?:\s|是|为|is|{_DEGREE}|:)*)?$"
)
_NOTHING = re.compile(
    r"^\s*(?:(?:答案|标签|结果|结论|类型|类别|labels?|answer|prediction|output)\s*(?:[:=]|是|为)?\s*)?"
    r"(?:无|没有|暂无|都没有|均无|均不存在|以上(?:都|均)?(?:不是|没有|无)|无任何|不存在|未体现|没有体现|"
    r"none(?: of (?:the above|them|these))?|nothing|n/a|null|no)\s*$"
)
_SKIP_WORDS = re.compile(rf"(?:{_DEGREE}|的|等|类型?|两种|三种|这|几种|了|[“”\"'‘’。.!])+")
_ITEM_BREAK = re.compile(r"[、,/;|+&\n]|和|以及|与|及|\band\b")

# --- Parent and child ---
_LINK = re.compile(r"^\s*(?:##?|-+>?|–|—+|→|=+>|>+|:+|/|[(]|·|\||\\|\.|中的|下的|里的|之|的|[(]?即)?\s*$")
_DEEPER = re.compile(r"^\s*(?:##?|-+>?|–|—+|→|=+>|>+|:+)\s*$")


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
        text = self._mark_names(self._tidy(self._head))
        text = _QUOTE.sub(self._unquote, text)
        text = _LATIN_STOP.sub("。", text)
        text = self._drop_reason(text)
        text = _QUESTIONED.sub(r"\1:", text)
        text = self._drop_unfinished(self._complete_children(text))
        if self._found.cut is None:
            self._note_unknown_items(text)
        for match in _SENTENCE.finditer(text):
            sentence = match.group()
            if "?" in sentence[-4:]:
                continue  # a question is no answer: the prompt echoed, or doubt
            if _CONDITION.search(sentence):
                self._found.flags.add("undecided")
                self._found.is_ambiguous |= re.search(r"否则|\botherwise\b", sentence) is not None
                continue
            for slot in self._slots(self._read_exception(sentence.strip("。!;\n… \t"))):
                self._read_slot(slot)
        return self._found

    # --- Preparation

    def _tidy(self, text: str) -> str:
        text = _EMPHASIS.sub("", text)
        text = _HEADING.sub("", text)
        text = _BULLET.sub("\n", text)
        text = _LINE_NUMBER.sub("\n", text)
        text = _INLINE_NUMBER.sub("\n", text)
        if not any(label.code for label in self._task.labels):
            text = _OPTION_LETTER.sub("\n", text)
        text = _HAN_GAP.sub("", text)
        return _SHORT_QUOTE.sub(r"\1", text)

    def _mark_names(self, text: str) -> str:
        parts: list[str] = []
        end = 0
        for token in self._vocabulary.tokens(text):
            if self._is_value(text, token):
                continue
            parts += [text[end : token.start], chr(_FIRST_TOKEN + len(self._tokens))]
            self._tokens.append(token)
            end = token.end
        return "".join([*parts, text[end:]])

    def _is_value(self, text: str, token: Token) -> bool:
        """Whether a name is no label where it stands but the value of the name before it, or a step of a scale."""
        if token.surface in ("0", "1") and _SCALE.match(text, token.end):
            self._found.is_ambiguous = True
            return True
        if not self._tokens or self._tokens[-1].entry.kind == "topic":
            return False
        before = self._tokens[-1]
        gap = text[before.end : token.start]
        if token.surface in ("0", "1"):
            same = before.entry.slug == token.entry.slug and "(" in gap  # 低自杀风险（0）: its code
            return _VALUE_GAP.fullmatch(gap) is not None and before.surface not in ("0", "1") and not same
        return token.entry.strict and _CHANCE.match(gap) is not None

    def _unquote(self, match: re.Match[str]) -> str:
        """Quotation marks around names go; any other quotation is the post's voice, not the answer's."""
        inside = match.group(1) or match.group(2) or ""
        rest = re.sub(rf"{_T}|{_SEPARATOR}|{_SKIP_WORDS.pattern}|\s", "", inside)
        whole = match.start() <= 1 and match.end() >= len(match.string.rstrip()) - 1
        if whole or not rest or (self._template[0] and inside.startswith(self._template[0])):
            return inside
        return "〇"

    def _drop_reason(self, text: str) -> str:
        """Without a marker, `because ...` after a name begins the explanation."""
        first = next((place for place, char in enumerate(text) if self._is_name(char)), None)
        match = _SOFT_MARKER.search(text, first) if first is not None else None
        if match is None:
            return text
        self._dropped_reason = True
        return text[: match.start()]

    def _is_token(self, char: str) -> bool:
        return 0 <= ord(char) - _FIRST_TOKEN < len(self._tokens)

    def _is_name(self, char: str) -> bool:
        return self._is_token(char) and self._token(char).entry.kind != "topic"

    def _token(self, char: str) -> Token:
        return self._tokens[ord(char) - _FIRST_TOKEN]

    # --- Cut-off answers

    def _drop_unfinished(self, text: str) -> str:
        """`text` without a label that breaks off at its end; notes where an answer without an end breaks off."""
        end = text.rstrip(" \t")
        self._found.ends_complete = not end or end[-1] in "。!;\n…)]】}"
        if self._found.ends_complete or self._dropped_reason or re.search(rf"{_T}\s*[-–—:=(→]+\s*否$", end):
            return text
        before = self._template[0]
        if before and len(end) > 1 and before.startswith(end):
            self._found.cut = "cut_in_label"
        elif re.search(rf"[,、]$|{_T}\s*(?:/|和|以及|与|及|##|\band)$", end):
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
            if context == before or (_LEFT_OF_ITEM.search(_tail(context)) and (in_template or re.search(_T, context))):
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
            if is_name and not self._token(word).entry.strict:
                return match.group()
            word = self._token(word).surface if is_name else word
            children = [label for label in self._task.labels if label.parent == parent.entry.slug]
            fitting = [label for label in children if label.zh.startswith(word)]
            if len(fitting) != 1 or any(word in label.aliases for label in children):
                return match.group()
            token = next(self._vocabulary.tokens(fold(fitting[0].zh)))
            self._tokens.append(token)
            return f"{match.group(1)}:{chr(_FIRST_TOKEN + len(self._tokens) - 1)}"

        return re.sub(rf"({_T})\s*:\s*({_T}|{_HAN}{{2,4}})(?=\s*(?:$|[,、。;\n]))", complete, text)

    def _read_exception(self, sentence: str) -> str:
        """除甲以外没有 asserts 甲 and nothing else; any other sentence stays as it is."""
        match = _EXCEPT.search(sentence)
        match = match if match and re.search(_T, match.group()) else None
        rest = sentence[: match.start()] + "," + sentence[match.end() :] if match else ""
        if match is None or not _NEGATIVE.search(_NOT_NEGATION.sub("", rest)):
            return sentence
        self._found.is_ambiguous |= any(map(self._is_name, rest))
        return match.group(1) or match.group(2)

    def _slots(self, sentence: str) -> list[str]:
        """`name: ... name: ...` on one line becomes one part for each name; other sentences stay whole."""
        starts = [
            match.start(1)
            for match in re.finditer(rf"(?:^|[\s,、;|)。])({_T}\s*(?:[(][^()]*[)])?\s*[:=](?!=))", sentence)
        ]
        starts = [start for start in starts if self._token(sentence[start]).entry.kind != "topic"]
        if not starts:
            return [sentence]
        bounds = [0, *[start for start in starts if start], len(sentence)]
        return [part for left, right in pairwise(bounds) if (part := sentence[left:right].strip(" ,、|\t"))]

    def _read_slot(self, slot: str) -> None:
        match = re.match(rf"^[^{_T[1:-1]}]{{0,8}}?({_T})\s*(?:[(]([^()]*)[)])?\s*[:=]\s*(.*)$", slot, re.DOTALL)
        if match is None:
            self._read_clauses(slot)
            return
        token, rest = self._token(match.group(1)), match.group(3)
        if token.entry.kind in ("topic", "foreign") and not (token.entry.kind == "foreign" and rest):
            self._read_clauses(slot)
            return
        if _NO_VALUE.match(f":{rest}") or not rest.strip():
            if rest.strip():
                self._deny(token)
            else:
                self._read_clauses(match.group(1))
            return
        if token.entry.kind == "parent":
            self._read_clauses(slot)
            return
        if _GRADE.match(rest):
            self._found.is_ambiguous = True
            return
        names = [self._token(char) for char in rest if self._is_name(char)]
        if names and not re.sub(rf"{_T}|{_SEPARATOR}|\s", "", rest):
            if token.entry.is_code and names[0].entry.slug == token.entry.slug:
                self._read_clauses(rest)
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
        for part in _CONTRAST.split(text):
            sentence_denies = False
            part = _ALL_DENIED.sub(self._deny_all, part)
            for clause in re.split(r"(?<!\d),|,(?!\d)", part):
                bare = not re.sub(rf"{_T}|{_SEPARATOR}|{_SKIP_WORDS.pattern}|\s", "", clause)
                inherits = sentence_denies and bare and not single
                sentence_denies = self._read_clause(clause, inherits)

    def _deny_all(self, match: re.Match[str]) -> str:
        for char in match.group():
            if self._is_token(char):
                self._deny(self._token(char))
        return "〇"

    def _read_clause(self, clause: str, inherits: bool) -> bool:
        """Reads one clause; returns whether it denies a name in a way that may go on over the next comma."""
        places = [
            match.start() for match in re.finditer(_T, clause) if ord(match.group()) - _FIRST_TOKEN < len(self._tokens)
        ]
        if not places:
            if _NOTHING.match(clause):
                self._found.says_none = True
            return False
        blanked = _NOT_NEGATION.sub(lambda match: "〇" * len(match.group()), clause)
        governors = list(_GOVERNOR.finditer(blanked))
        is_open = _OPEN.search(clause) is not None
        self._found.is_ambiguous |= _BETWEEN.search(clause) is not None
        if _MAYBE.search(clause):
            self._found.flags.add("hedged")
        denied_any = False
        accepted: list[tuple[int, Token]] = []
        for index, place in enumerate(places):
            token = self._token(clause[place])
            left = clause[places[index - 1] + 1 if index else 0 : place]
            right = clause[place + 1 :]
            next_place = places[index + 1] if index + 1 < len(places) else len(clause)
            if token.entry.strict and not self._stands_alone(left, right):
                continue
            if _OTHER_RISK.search(left):
                continue
            if is_open:
                continue
            polarity = self._polarity(blanked, governors, place)
            if token.entry.kind == "topic":
                owner = (
                    index
                    and re.fullmatch(r"\s*的?\s*", left)
                    and self._token(clause[places[index - 1]]).entry.kind != "topic"
                )
                if (
                    (polarity == "denied" or _NO_VALUE.match(right))
                    and not owner
                    and not _OTHER.search(left)
                    and index + 1 == len(places)
                ):
                    self._deny(token)
                continue
            after = clause[place + 1 : next_place]
            if _GRADE.match(right):
                self._found.is_ambiguous = True
                continue
            carries_on = polarity == "denied" or inherits  # 没有 A，B; but not A：无，B
            if _NO_VALUE.match(right) and not _YES_VALUE.match(right):
                polarity = "asserted" if polarity == "denied" else "denied"
            elif _DENIED_AFTER.match(after) or _DENIED_AT_END.match(right) or inherits:
                polarity = "denied"
            if polarity == "denied":
                self._deny(token)
                denied_any |= carries_on
            elif polarity == "asserted":
                accepted.append((place, token))
        self._assert_chain(clause, accepted)
        if is_open and not accepted:
            self._found.flags.add("undecided")
        return denied_any

    def _stands_alone(self, left: str, right: str) -> bool:
        """Whether an everyday word is used as a label: an item between separators, lead-ins and other names."""
        return bool(_LEFT_OF_ITEM.search(_tail(left)) and _RIGHT_OF_ITEM.search(right[:40]))

    def _polarity(self, clause: str, governors: list[re.Match[str]], place: int) -> str:
        """`asserted`, `denied` or `open`, by the last word before the name that says or denies something."""
        last = next((each for each in reversed(governors) if each.end() <= place), None)
        if last is None:
            return "asserted"
        group = last.groupdict()
        if not (group["zneg"] or group["zbare"] or group["eneg"] or group["ebare"]):
            return "asserted"
        between = re.sub(rf"{_T}|{_SEPARATOR}|{_DEGREE}|的", "", clause[last.end() : place])
        reach = _MAX_REACH_LATIN if between.isascii() else _MAX_REACH_HAN
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
            linked = previous is not None and gap is not None and _LINK.match(gap) is not None
            if (
                previous is not None
                and gap is not None
                and _EITHER.search(gap)
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
                if depth and before.kind == "label" and token.entry.kind != "parent" and _DEEPER.match(gap):
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
            topic = next((match.start() for match in re.finditer(_T, region) if not self._is_name(match.group())), None)
            if topic is not None:
                region = region[:topic].rstrip("的 ")
            items = _ITEM_BREAK.split(region)
        else:
            lines = text.strip("。!.\n ").split("\n")
            items = [
                item
                for line in lines
                if not re.match(rf"\s*{_T}[^:]{{0,8}}:", line)
                for item in re.split(r"[、,/]", re.sub(r"^[^:]{0,8}:", "", line))
            ]
            if len(items) < 2 or max(len(item.strip()) for item in items) > 8:
                return
            if not any(re.fullmatch(rf"\s*{_T}\s*", item) for item in items):
                return
        for item in items:
            rest = _SKIP_WORDS.sub("", item).strip()
            if (
                rest
                and not re.search(_T, item)
                and not _NOTHING.match(item)
                and not _LEAD_ONLY.match(item)
                and not _GOVERNOR.match(rest)
            ):
                self._found.flags.add("out_of_set_label")
