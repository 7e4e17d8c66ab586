"""The words and phrases that answers are read by, in Chinese and English: data for `prose` and `answer`, no logic.

Patterns are for folded text. `NAME` stands for a name of the vocabulary: the reader puts one private-use character in
the place of each before it looks at the words around it.
"""

import re

# One private-use character stands for each name found; which one, its number says.
FIRST_TOKEN = 0xE000
NAME = "[\ue000-\uf8ff]"
HAN = "[\u3400-\u9fff]"

# --- Markdown and layout ---
EMPHASIS = re.compile(r"\*{1,3}|__|~~|`+|\\(?=[_*#])")
HEADING = re.compile(r"(?m)^[ \t]*#{1,6}[ \t]+")
BULLET = re.compile(r"(?m)^[ \t]*(?:[-*+•·●○▪◦‣>][ \t]+|[•·●○▪◦‣])")
NUMBER = r"(?:\d{1,2}|[一二三四五六七八九十]{1,2})"
LINE_NUMBER = re.compile(
    rf"(?m)^[ \t]*(?:[(]?{NUMBER}\s*(?:[、):]|\.(?!\d))|"
    rf"第?{NUMBER}[、,:]|[(]{NUMBER}[)]|\d{{1,2}}(?={HAN}))[ \t]*(?=\S)"
)
INLINE_NUMBER = re.compile(rf"(?<=[\s,、;。:]){NUMBER}\s*[.、)]\s*(?={HAN}|[a-z]{{3}})|[(](?!0[)])\d{{1,2}}[)]\s*")
OPTION_LETTER = re.compile(r"(?m)(?:^|(?<=[\s:]))[(]?[a-h]\s*[.)、]\s*(?=\S)")
HAN_GAP = re.compile(rf"(?<={HAN})[ \t\xa0]+(?={HAN})")
SHORT_QUOTE = re.compile(r"[“\"‘「『《]([^“”\"‘’「」『』《》。!?,\n]{1,4})[”\"’」』》]")
QUOTE = re.compile(r"[“\"「『《]([^“”\"「」『』《》\n]*)[”\"」』》]|(?<![a-z])[‘']([^‘’'\n]{1,60})[’'](?![a-z])")
LATIN_STOP = re.compile(rf"\.(?=\s|$|{HAN}|{NAME}|[”\"')\]])")

EMPTY_ITEM = re.compile(r"\n[ \t]*(?:[*•]|-|[(]?\d{1,2}[.、)]+)[ \t]*\Z")
"""A list that breaks off behind the number of its next item."""
VALUE_BELOW = re.compile(rf"({NAME})[ \t]*:[ \t]*\n{{1,3}}[ \t]*(?=(?:无|没有|暂无|否|none|n/a)\s*[。.]?\s*(?:\n|\Z))")

# --- Sentences, clauses ---
SENTENCE = re.compile(r"[^。!?;\n…]*[。!?;\n…]*")
CONTRAST = re.compile(
    r"(?=而是|而属于|而体现|而应|但是?|却|反而|因此|所以|故而?(?=属|判|为)|从而|可见|综上|总之)"
    r"|\b(?=but\b|however\b|instead\b(?! of)|so\b|therefore\b|thus\b|hence\b|although\b|though\b|yet\b)"
)
SOFT_MARKER = re.compile(r"因为|由于|是因|原因是|\b(?:because|since|as the (?:post|poster|author|user))\b")

# --- What may stand around an everyday word that is meant as a label ---
SEPARATOR = (
    r"(?:[、,/;|+&\n。!?…:(){}\[\]【】<>→=–—#~\-]|->|和|以及|与|及|并且?|且|同时|还有|还|也|或者?|还是|其次|另外|"
    r"因此|所以|而是|但|却|\bso\b|\bthus\b|\bhence\b|\btherefore\b|\band\b|\bor\b|\balso\b|\bplus\b|\bwell as\b|"
    r"\bbut\b)"
)
DEGREE = (
    r"(?:较为|较|比较|很|非常|极其|极|相对|偏|十分|特别|更|明显的?|明确的?|显著的?|一些|一定的?|一种|某种|"
    r"典型的?|轻微的?|强烈的?|过度的?|任何|"
    r"\b(?:very|relatively|quite|rather|clearly|a|an|the|some|any|of|clear|signs?|symptoms?|level)\b|\s)"
)
LEAD = (
    r"(?:体现|表现|属于|存在|反映|显示|是|为|有|即|涉及|包括|包含|含有|含|具有|呈现|展现|展示|归类?|判断|判定|"
    r"评估|评定|分类|预测|标签|答案|类型|类别|结果|"
    r"结论|等级|级别|程度|风险|水平|回答|输出|处于|中的|下的|里的|关于|患|选择?|"
    r"\b(?:is|are|be|as|to|shows?|showing|has|have|having|exhibits?|displays?|indicates?|suggests?|reflects?|"
    r"demonstrates?|"
    r"with|labels?|answer|prediction|category|class|risk|type|includes?|of|at|from|contains?|related|by|"
    r"option|namely)\b)"
)
LEAD_ONLY = re.compile(rf"^\s*(?:{LEAD})+\s*$")
LEFT_OF_ITEM = re.compile(rf"(?:^|{SEPARATOR}|{LEAD}(?:了|出|着|到|于|为|是|的|有|在)*)\s*{DEGREE}*$")
TRAIL = (
    r"(?:认知|这|类|型|事件|错误|偏差|思维|谬误|现象|倾向|相关|有关|方面|因素|风险|等|问题|水平|程度|级|特征|"
    r"表现|模式|两|三|四|情况|阶段|环节|"
    r"\b(?:cognitive|distortions?|thinking|risks?|symptoms?|issues?|bias|errors?|patterns?|types?|levels?|"
    r"category|class|"
    r"problems?|related|dimension|disorders?|causes?|in|is|for|here|present|as)\b)"
)
RIGHT_OF_ITEM = re.compile(
    rf"^\s*(?:$|(?![也却还](?![有是])){SEPARATOR}|而?(?:不是|非|并非)|\b(?:not|rather than|instead of)\b|"
    rf"[.”\"']|的?\s*{TRAIL}|的\s*$|{NAME}|的\s*{NAME})"
)

# --- Who governs a name ---
NOT_NEGATION = re.compile(
    r"不仅仅?|不但|不只|不光|不单|毫无疑问|毫无疑义|无疑|不得不|不可否认|除非|非常|是非|无论|不管|不断|不满(?!足)|"
    r"不安|不良|不幸|不同|不少|不久|不止|未来|未成年|无数|无比|无限|无尽|无助|无望|"
    r"(?:不(?:可|容|能|应|该)|无法)(?:忽视|忽略|小觑|低估|轻视)|不难|"
    r"无价值|无意义|无能|无力|无奈|无用|无聊|没用|行为|因为|以为|作为|为了|成为|为什么|(?<![不没])认为|人为|"
    r"\bnot (?:only|just|merely|simply)\b|\bno doubt\b|\bwithout (?:a )?doubt\b"
)
NEGATION_WORD = (
    r"(?:没有|无|缺乏)(?:足够|充分|明确|明显)?的?(?:证据|依据|迹象|理由|必要)|没必要|不(?:宜|建议|主张|倾向于?|必|该)|"
    r"并没有|并未|没有|未曾|未能|并不|不会|不能|不足以|无法|并无|毫无|并非|不再|不应|不|没|未|无"
)
ADVERB = (
    r"(?:明显|直接|明确|充分|真正|完全|一定|能够|能|应该|应当|应|会|必|足以|清晰|具体|显著|真的|强烈|可以|被|太|"
    r"很|再|地|单纯)"
)
VERB = (
    r"体现|表现|属于|存在|反映|显示|涉及|包含|包括|含有|构成|符合|具有|呈现|展现|展示|判断|判定|归为|归类|"
    r"归入|患|达到|出现|发现|看到|看出|见到|提到|"
    r"判为|评为|列为|定为|视为|认为|觉得|认定|证明|说明|表明|表达|提示|暗示|支持|满足|处于|是|为|有|含|算|见|像"
)
SUBJECT = (
    r"(?:(?:这|该|此|其|它|本|那)(?:篇|条|个|位)?(?:帖子?|贴子?|微博|文本|内容|用户|发帖人|作者)?|"
    r"帖子|发帖人|用户|作者)"
)
GOVERNOR_ZH = (
    rf"(?P<zneg>{NEGATION_WORD})?{ADVERB}*(?P<zverb>{VERB})(?:{SUBJECT}?(?:是|为|属于|存在|有|患有?))*|"
    rf"(?P<zbare>没有|没|无|毫无|并无|缺乏|缺少|排除|否认|"
    rf"并非|而非|非|不|未)"
)
VERB_EN = (
    r"(?:shows?|showing|exhibits?|displays?|indicates?|suggests?|reflects?|demonstrates?|has|have|had|is|are|"
    r"was|be|belongs?|contains?|"
    r"presents?|suffer(?:s|ing)?|involves?|includes?|reveals?|classified|label+ed|falls?|expresses|expressing|"
    r"experienc(?:es|ing)|appears?|seems?|fits?)"
)
GOVERNOR_EN = (
    rf"(?P<eneg>\b(?:not|never|no|nor|neither|cannot|nothing|nobody)\b|n['’]t\b)"
    rf"\s+(?:(?:think|believe|say|consider|feel|find|see|conclude|mean|imply)\s+(?:[a-z]+\s+){{0,4}}?)?"
    rf"(?:[a-z]+\s+){{0,3}}?(?P<everb>{VERB_EN})\b(?:\s+(?:to\s+)?{VERB_EN}\b)*"
    r"|(?P<ebare>\b(?:not|no|without|neither|nor|never|lacks?|lacking|rather than|instead of|absence of|"
    r"absent|free of|den(?:y|ies)|"
    rf"rules? out|ruled out)\b|n['’]t\b)|(?P<epos>\b{VERB_EN}\b)"
)
GOVERNOR = re.compile(f"{GOVERNOR_ZH}|{GOVERNOR_EN}")
MAX_REACH_HAN, MAX_REACH_LATIN = 10, 48
OPEN = re.compile(
    r"(?:无法|不能|难以|很难|不好|不足以|未能|没法|不便)[^,。;]{0,8}?(?:判断|确定|判定|确认|得知|评估|断定|"
    r"得出|给出|排除|识别|区分|分类)|不排除|"
    r"不确定|不清楚|不知道|未知|不明(?!显)|是否|有没有|是不是|会不会|可选|候选|选项(?=\s*:|有|包括)|如果|假如|"
    r"倘若|(?<![主次重])要是|假设|若(?!干)|与其|相比(?:于|之下)?|比起|"
    r"看似|貌似|有[点些](?:像|类似)|看(?:上去|起来)像|(?:不是|并非|不能说|不见得)没有?|"
    r"表面上?|乍一?看|不(?:太|大)?可能|不见得|未必|"
    r"(?:很难|难以)(?:说|算|称|认为|认定|归|判|构成)|(?:算|称|谈|够|说)不上|不能(?:说|算|认为|认定|归|称|视)|"
    rf"{NAME}于\s*{NAME}|分[为成](?=[:\s]*{NAME}\s*(?:[、,/]|和|与|或|及))|{NAME}的?(?:判断|判定|判别|界定)?(?:标准|定义|条件|含义|概念)(?:[是为指]|通常|一般|包括)|"
    rf"{NAME}(?:通常|一般|往往|常|是)?(?:指的是|是指|指|意味着|定义为)|{NAME}\s+(?:is defined as|means|refers to)\b|"
    rf"{NAME}(?:的)?(?:存疑|(?:证据|依据|理由)(?:都|并)?不(?:足|充分)|可以?排除|反面|对立面)|接近|还?有距离|"
    r"\bcannot be\b|\b(?:wrong|incorrect|mistaken|a mistake) to\b|\bcompared (?:to|with)\b|"
    r"\bfar from\b|\bclose to\b|\b(?:unlikely|improbable|hardly|doubtful|not likely)\b|"
    r"\b(?:cannot|can['’]?t|could not|couldn['’]?t|unable|not able|not possible|impossible|difficult|"
    r"hard)\b[^,.;]{0,24}?"
    r"\b(?:determine[d]?|tell|say|assess|decide|judge|classify|conclude|rule out|help|assist|identify|provide|"
    r"evaluate)\b|"
    r"\b(?:unclear|uncertain|unsure|not sure|insufficient|whether|if|unknown|don['’]?t know|do not know|not enough)\b"
)
MAYBE = re.compile(r"可能|或许|也许|似乎|大概|疑似|\b(?:might|may|maybe|possibly|perhaps|probably|likely|seems?)\b")
EITHER = re.compile(r"还是|或者?|抑或|\bor\b|\bvs\b")
VALUE_END = rf"\s*+[)|]?+\s*+(?!\.?\d|[a-z%]|{HAN})"
NO_VALUE = re.compile(
    r"^\s*(?:(?:是|为|[:=|(→]|##?|[-–—]+(?=\s*[否无没不]))\s*(?:无|没有|否|没|缺失|存疑|排除|(?:证据|依据)?不足|不(?:存在|成立|明显|大|高|满足|确定|太可能|可能|支持)|"
    r"未(?:见|发现|达到|满足)|(?:可能性|概率|几率)?(?:很|较|极|比较)?[低小弱]|n|f|不适用|不涉及|未体现|没有体现|未出现|未涉及|未提及|不是|"
    r"不属于|不符合|0(?:\.0+)?|no|none|not present|"
    rf"absent|missing|n/a|null|nil|false|×|✗|✘|❌|-{{1,3}}|—)|(?:皆|均|都)?(?:无|没有|否|0|×|✗|✘|❌)|[(]\s*(?=[)])){VALUE_END}"
)
YES_VALUE = re.compile(rf"^\s*[:=|(]?\s*(?:有|是|存在|1(?:\.0+)?|yes|true|t|present|√|✓|✔|✅){VALUE_END}")
DENIAL = (
    r"(?:并)?(?:不(?:存在|明显|成立|适用|符合|满足|大|高|算|正确|准确|符|相符|一致|匹配|吻合|对(?=$))|没有(?:体现|出现|表现)|未(?:体现|出现|见)|"
    r"缺失|缺乏|欠缺|(?:是|属于)?(?:错误的|错的|误判)|(?:被|已)?排除|"
    r"\s*(?:is|are|was|were|does|do)(?: not|n['’]t)\b|\s*(?:is|are|was|were)?\s*(?:both |all )?"
    r"(?:not present|absent|missing|lacking|wrong|incorrect|excluded|ruled out))"
)
DENIED_AFTER = re.compile(
    rf"^(?:的|这一|方面)*(?:迹象|特征|表现|倾向|标签|判断|结论)?(?:都|均|皆|也)?{DENIAL}"
    r"|^(?:的|\s)*(?:可能性|概率|几率|程度|强度|probability|likelihood|chance)[^,。;]{0,6}?"
    r"(?:低|小|不大|不高|没有|微乎其微|为零|为0|\blow\b|\bsmall\b)"
)
DENIED_AT_END = re.compile(r"^(?:都|均|皆|也|是|并)*(?:没有|没|无)\s*$")
LIST = r"(?:[、/|+&\s]|和|以及|与|及|并且?|且|或者?|还有|\band\b|\bor\b)"
ALL_DENIED = re.compile(
    rf"(?:^(?:{NAME}|{LIST}|,)*{NAME}|{NAME}(?:{LIST}{{0,4}}{NAME}){{0,12}})(?:这?[两三四几]种|等|的(?:迹象|表现))?[,\s]*"
    rf"(?:(?:都|均|皆|全)(?:没有|没|无|未|不(?!仅|只|但)|{DENIAL})"
    r"|\s(?:are|were|do)\s+(?:both\s+|all\s+)?(?:not\b|absent|missing|lacking|unlikely|wrong|incorrect)"
    r"|\s(?:are|were|do)n['’]t\b)[^,。;]*"
)
"""A list and a denial of all of it: 甲、乙都没有."""
GRADE = re.compile(
    r"^[)\]]?\s*(?:的?(?:概率|几率|可能性|得分|评分|分数|比例|probability|likelihood|score))?\s*(?:[:=(]|是|为|约)?\s*"
    r"(?:约|大约|\babout\b)?\s*(?:(?!0\.0+(?!\d)|1\.0+(?!\d))\d*\.\d+|\d+(?:\.\d+)?\s*%|百分之|"
    r"\d{1,3}\s*(?:分|/\s*\d|out of\b))"
)
"""A probability or a mark behind a name: where to cut is not ours to say."""
CHANCE = re.compile(r"^[^,。;!?\n]{0,6}(?:可能性|概率|几率|probability|likelihood|chance)[^,。;!?\n]{0,6}$")
SCALE = re.compile(r"\s*(?:[(,]?\s*(?:共|满分|总分|out of\b)|[级分星]|/\s*\d|[-~到至]\s*\d)")
VALUE_GAP = re.compile(r"[ \t]*[:=|(][ \t]*|[ \t]+")
QUESTIONED = re.compile(rf"({NAME})\s*[?]\s*(?=(?:yes|no|是|否|有|没有|无)(?:的)?\s*(?:[.。,;!\n]|$))")
EXCEPT = re.compile(
    rf"除了?((?:{NAME}|{LIST})*)(?:以外|之外|外)"
    rf"|(?:other than|except(?: for)?|besides|apart from)((?:{NAME}|{LIST})+)"
)
NEGATIVE = re.compile(r"没有|没|无|未|不|\b(?:no|not|none|nothing)\b")
CONDITION = re.compile(
    rf"(?:如果|假如|倘若|假设|若(?!干)|(?<![主次重])要是)[^。]*{NAME}|^\s*if\b[^。]*{NAME}"
    rf"|(?:否则|\botherwise\b)[^。]*{NAME}"
)
BETWEEN = re.compile(rf"{NAME}之间|\bbetween\s+{NAME}")
OTHER = re.compile(r"(?:其他|其它|别的|更多|\bother|\bfurther|\badditional)(?:的|任何|类型的?)?\s*$")
OTHER_RISK = re.compile(
    r"(?:抑郁症?|焦虑症?|他杀|自残|自伤|暴力|伤人|犯罪|复发|疾病|健康|经济|财务|心脏病?|\bdepression|\banxiety|"
    rf"\bhomicide|\bviolence|\brelapse|\bself-harm)的?\s*(?:(?:风险|程度|水平|等级|\brisk)(?:\s|是|为|is|{DEGREE}|:)*)?$"
)
NOTHING = re.compile(
    r"^\s*(?:(?:答案|标签|结果|结论|类型|类别|labels?|answer|prediction|output)\s*(?:[:=]|是|为)?\s*)?"
    r"(?:无|没有|暂无|都没有|均无|均不存在|以上(?:都|均)?(?:不是|没有|无)|无任何|不存在|未体现|没有体现|"
    r"(?:都|均|并)?(?:不属于|不是|没有体现|没有|未体现)(?:以上|上述)(?:的?(?:任何|所有))?(?:一[种类个项])?|"
    r"none(?: of (?:the above|them|these))?|nothing|n/a|null|no)\s*$"
)
SKIP_WORDS = re.compile(rf"(?:{DEGREE}|的|等|类型?|两种|三种|这|几种|了|[“”\"'‘’。.!])+")
ITEM_BREAK = re.compile(r"[、,/;|+&\n]|和|以及|与|及|\band\b")

GENERIC = (
    rf"(?:{NAME}|认知|歪曲|扭曲|偏差|错误|内容|表现|迹象|特征|证据|信息|情况|倾向|现象|思维|模式|部分|体现|依据|描述|"
    r"标签|类型|问题)"
)
POINTING = r"(?:任何|明显|相关|这|该|此|一|种|类|个|些|方面|的|其|上述|直接)"
DENYING_VALUE = re.compile(
    rf"^\s*[:=(|\-–—→]+\s*(?:{SUBJECT}|文|在)?(?:中|里)?(?:并|均|都|也|中)*(?:没有?|未|无|不)(?:{ADVERB}|{POINTING})*"
    rf"(?:(?:体现|表现|表达|出现|发现|涉及|提及|提到|存在|反映|显示|符合|适用|看到|看出|见)(?:出来?|到|有|过|了)*"
    rf"(?:{POINTING}|{GENERIC})*|{GENERIC}(?:{POINTING}|{GENERIC})*)\s*(?=$|[,。;)])"
    r"|^\s*[:=(|\-–—→]+\s*(?:(?:the|this) (?:post|poster|author|text)\s+|there\s+)?(?:(?:is|are|was|does|do|has)\s*)?"
    r"(?:not|no|n['’]t)\s+(?:(?:any|an?|clear(?:ly)?|explicit(?:ly)?|direct(?:ly)?|specific|strong)\s+)*"
    r"(?:applicable|present|evident|evidence|found|observed|shown?|exhibit(?:ed)?|display(?:ed)?|detected|identified|"
    r"mention(?:ed)?|reflect(?:ed)?|demonstrate[d]?|indicat(?:ed|ion)|signs?|apparent|obvious|contain|met)\b"
    rf"(?:\s+(?:of|in|for|by|here|this|that|the|it|any|such|post|text|type|kind|cognitive|distortion|{NAME}))*\s*(?=$|[,.。;)])"
)
"""A sentence behind a name and a colon that says no more than that it does not apply: 帖子没有表现出这种认知歪曲."""
ANNOTATED = re.compile(rf"(?:{DEGREE}|{NAME}|的)*(?:{POINTING}|{GENERIC})")
"""What is denied before a bracket, where the bracket belongs to the denial: 没有这种情况（甲）, not 没有价值（甲）."""
ASIDE = re.compile(rf"[(](?:(?!{NAME})[^()])*[)]")
"""A bracket without a name: what it denies, it denies inside."""
WHETHER = re.compile(r"是否|是不是|有没有|有无|能否|可否|会不会")
CHATTER = re.compile(
    r"\b(?:yes|sure|of course|certainly)\b[,!.]*\s+i(?: can|['’]d be| would be| will| am|['’]m)"
    r" (?:help|assist|analy[sz]e|happy|glad)\b[^.!?\n]*[.!?]?"
    r"|(?:是的|好的|可以|当然)[,!。]?我(?:可以|能|很乐意|会)(?:帮|为[您你]|协助)[^。!?\n]*"
)
"""Politeness that begins with a yes."""
DIRECT_DENIAL = re.compile(
    r"\b(?:do|does|did|is|are)(?: not|n['’]t)\s+(?:(?:appear|seem)s?(?:\s+to)?(?:\s+be)?|currently|clearly)?\s*$"
)
"""What makes a statement its opposite, and no more than that."""

# --- Ticks and grades ---
TICKED, UNTICKED = "✅☑✓✔√", "☐□❌✗✘×"
TICKED_LINE = re.compile(rf"(?m)^[ \t]*(?:\[\s*[x√✓✔]?\s*\]|[{TICKED}{UNTICKED}])\s*{NAME}.*$")
"""A line whose marks stand before the names."""
TICK = re.compile(rf"(\[\s*[x√✓✔]?\s*\]|[{TICKED}{UNTICKED}])([^\[{TICKED}{UNTICKED}]*)")
NO_TICK = re.compile(rf"\[\s*\]|[{UNTICKED}]")
GRADE_NAME = re.compile(r"(?:较|极|偏)?[高低]|high|low")
"""A label that is a mere grade: it counts as a grade of the risk, not of a mood or of the model's confidence."""
GRADES_RISK = re.compile(
    rf"(?:^|[,、;。!?…\n|/+&)\]】]|{NAME}|(?:{NAME}|\brisk)\s[^,。;:]{{0,40}}?\b(?:is|as)\b|和|与|及|且|或者?|还是|而是|但|却|因此|所以|最终|综合|总体|整体|自杀|风险|危险|危机|答|答案|"
    r"标签|结果|结论|判断|判定|评估|评定|回答|输出|预测|分类|类别|类型|选择?|选项|属于|体现|表现|存在|反映|显示|有|处于|归为?|认为|应该?|"
    r"\b(?:risk|suicid\w*|answer|labels?|prediction|category|class|output|response|result|conclusion|overall|final|it|option|"
    r"choose|as|say|at|shows?|has|have|exhibits?|displays?|indicates?|suggests?|reflects?|demonstrates?|contains?|with|"
    r"and|or|but|so|thus|hence|therefore|not|rather than)\b)"
    rf"(?:[\W_]|{DEGREE}|程度|水平|等级|级别|评级|评分|系数|指数|值|性|倾向|情况|状态|是|为|的|了|出|则|就|即|"
    r"\b(?:levels?|is|are|be|was|of|rating|rated|assessment|assessed|evaluation|score)\b)*$"
)
GRADES_OTHER = re.compile(
    rf"^\s*(?:levels?|degrees?|amounts?|intensity)\s+of\s+(?![^,.]{{0,12}}(?:suicid|risk|{NAME}))|^(?:水平|程度|强度)的(?!自杀|风险|{NAME})"
)
HALF_WAY = re.compile(
    r"(?:(?<![子文容话语章博句段贴其当之心])中[等度]?(?:偏|到|至|或|[-~–—])?"
    r"|(?:轻度?|moderate|medium|mild)\s*(?:偏|到|至|[-~–—]|\bto\b)\s*)$"
)
"""Before a grade: it is only one end of what is said (中低, moderate to high)."""
STEP = re.compile(r"\s*(?:偏|到|至|[-~–—]|to)\s*")
ORDINAL = re.compile(
    r"(?:帖子?|样本|样例|示例|例子?|第|编号|序号|微博|文本|输入|"
    r"(?<![a-z])(?:post|sample|example|id|no|item|input|case))\s*[:.#]?\s*$"
)
"""What a number behind it counts: it is no label."""

# --- Parent and child ---
LINK = re.compile(r"^\s*(?:##?|-+>?|–|—+|→|=+>|>+|:+|/|[(]|·|\||\\|\.|中的|下的|里的|之|的|[(]?即)?\s*$")
DEEPER = re.compile(r"^\s*(?:##?|-+>?|–|—+|→|=+>|>+|:+)\s*$")

# --- Where the explanation or another answer field begins; refusals ---
MARKER_WORDS = {
    "anywhere": ("理由", "解释", "reasoning", "explanation", "rationale"),
    "clause": (
        "原因", "分析", "依据", "说明", "推理", "解析", "理据", "推理过程", "判断依据", "证据", "reason",
        "reasons", "analysis", "justification",
        "evidence", "explanations",
    ),
}  # fmt: skip
ANSWER_FIELD = re.compile(
    r"(?:^|[\n。.;!,])[\s*#\-【\[]{0,6}(?:因此|所以|综上所?述?|therefore|so)?[,\s]{0,3}(?:the\s)?(?:最终|最后|final\s)?"
    r"(?:答案|标签|结论|回答|判断结果|预测标签|预测结果|分类结果|判断|labels?|answer|prediction|conclusion|"
    r"output)[\s*】\]]{0,6}(?:[:=]|是|为|\bis\b)"
)
REFUSAL = re.compile(
    r"抱歉|对不起|不好意思|很遗憾|请原谅|请谅解|敬请谅解|(?:无法|不能|不便|不会|没办法|没有办法|"
    r"拒绝)(?:为[您你])?(?:提供|协助|帮助|回答|满足|处理|完成|继续|参与|讨论|回应|执行|对此|进行(?:这|此|该|"
    r"心理|医|诊|评))|"
    r"作为(?:一[个名款种位])?(?:\s*ai|人工智能|语言模型|大模型|智能助手|助手|虚拟)|"
    r"我(?:只)?是(?:一[个名款种])?(?:\s*ai|人工智能|语言模型)|"
    r"热线|心理援助|危机干预|寻求[^。]{0,8}(?:帮助|支持|援助)|(?:联系|咨询)[^。]{0,8}(?:专业|医生|咨询师|医院)|"
    r"违反[^。]{0,12}(?:政策|规定|准则|规范|原则)|(?:敏感|不当|违规)(?:内容|话题)|不便(?:评论|评价|评估)|我不是(?:医生|心理|专业)|"
    r"\bsorry\b|apologi[sz]e|\bi (?:can(?:no|['’])t|can not|won['’]t|will not|am unable|am not able|"
    r"must decline)|\bi['’]m (?:unable|not able|not comfortable)|"
    r"\bunable to (?:assist|help|provide|comply|fulfil|answer|process)|\bas an? (?:ai|artificial|language|"
    r"large)\b|\blanguage model\b|"
    r"\b(?:hot|life|crisis )line\b|\b988\b|\bseek(?:ing)? (?:\w+ )?(?:help|support)\b|\breach out to\b|"
    r"\b(?:policy|policies|guidelines)\b|"
    r"\bdecline\b|\bnot (?:a|an) (?:doctor|therapist|medical|mental)|\bmental health professional\b"
)
INABILITY = re.compile(
    r"(?:我们?|本人|助手|模型)[^。!?;\n]{0,8}?(?:无法|不能|不便|没办法|没有办法|拒绝|不会)[^。!?;\n]{0,10}?"
    r"(?:回答|协助|提供|处理|分析|评估|评价|帮助|满足|完成|讨论|回应)|"
    r"(?:抱歉|对不起|不好意思)[^。!?;\n]{0,30}(?:无法|不能|不便|拒绝)|"
    r"(?:^|[,。;\n])\s*(?:因此|所以|故)?(?:无法|不能|不便|拒绝)(?:对此|为[您你])?(?:回答|提供|协助|处理(?=$|[,。]))|"
    r"\b(?:content|request|topic)\b[^.!?;\n]{0,24}\bnot (?:be )?(?:supported|allowed|permitted|processed)\b|"
    r"\bi (?:can(?:no|['’])t|can not|won['’]t|will not|am unable|am not able|must decline|decline)[^.!?;\n]{0,16}?"
    r"\b(?:answer|assist|help|provide|analy[sz]e|assess|evaluate|comply|process|classify|discuss|engage|respond|do)\b|"
    r"\bi['’]m (?:unable|not able)\b|\bi (?:must )?decline\b"
)
STATEMENT_LEAD = re.compile(
    r"(?:(?:最终)?(?:答案|标签|结论|回答|判断结果|预测|结果)|(?:the\s)?(?:final\s)?(?:label|answer|prediction|output)s?|"
    r"(?:the|this) (?:post|poster|author|user)(?: shows?| exhibits?| indicates?| suggests?| reflects?)(?: an?)?|"
    r"属于|判断为|判定为|(?:自杀)?风险(?:等级|水平)?|risk(?: level)?)?(?:是|为|\bis\b)?[\s*#\-_:=\[【(“\"']*"
)
YES_NO = frozenset(
    {"yes", "no", "none", "是", "是的", "否", "不", "不是", "没有", "无", "对", "有", "存在", "不存在", "并不"}
)
